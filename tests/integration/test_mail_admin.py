"""What an operator sees of mails and accounts, and does to them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest
import trio

from actors.domain.mail import MailState
from actors.ports import Missed
from service.postgres.mail_admin import PostgresMailAdmin
from tests.fakes.accounts import POLICY
from tests.integration.conftest import Stores, redemption, resend, take_over

KEY = "ada@example.com"
COUNTS = """
SELECT sum(registrations)::int, sum(activations)::int, sum(resends)::int FROM vestibule.business_counts
"""
RAISE_VERSION = "UPDATE vestibule.accounts SET version = version + 1"
SOMEBODY_WAITS = """
DO $$ BEGIN
    WHILE NOT EXISTS (SELECT FROM pg_locks WHERE NOT granted) LOOP PERFORM pg_sleep(0.01); END LOOP;
END $$
"""
IN_BERLIN = """
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone TO %L', current_database(), 'Europe/Berlin'); END $$
"""


@pytest.fixture
def admin(stores: Stores) -> PostgresMailAdmin:
    """Give an operator's hand on the stores."""
    return PostgresMailAdmin(stores.postgres, POLICY, "k2")


async def test_mails_are_listed_newest_first_and_narrowed(stores: Stores, admin: PostgresMailAdmin) -> None:
    """By id, state, time and number; with the reason, and neither code nor hash."""
    await stores.registered()
    dead = (await stores.dead()).id
    account = await stores.registered("bob@example.com")
    newer = account.mails[0].id
    entries = {entry.id: entry for entry in await admin.mails()}
    assert (entries[dead].state, entries[dead].reason) == ("dead", "550 5.1.1 no such mailbox at RCPT")
    assert (entries[dead].to, entries[dead].kind, entries[dead].attempts, entries[dead].locale) == (
        KEY,
        "code",
        1,
        "en",
    )
    assert [entry.id for entry in await admin.mails(mail_id=newer)] == [newer]
    assert await admin.mails(mail_id=uuid4()) == []
    assert [entry.id for entry in await admin.mails(state=MailState.DEAD)] == [dead]
    assert [entry.id for entry in await admin.mails(state=MailState.DEAD, since=datetime.now(UTC))] == []
    assert len(await admin.mails(since=datetime.now(UTC) - timedelta(minutes=1))) == 2
    assert len(await admin.mails(limit=1)) == 1


async def test_a_dead_mail_is_owed_again_under_a_fresh_code(stores: Stores, admin: PostgresMailAdmin) -> None:
    """Once, signed with the newest key, with the guesses of the old one, and against no budget."""
    account = await stores.registered()
    assert await stores.accounts.redeem([redemption(account)]) == [Missed(4)]
    dead = (await stores.dead()).id
    assert await admin.replay([dead], dry_run=True) == [dead]
    assert await stores.queue.claim(10) == []
    assert await admin.replay([dead, dead], dry_run=False) == [dead]
    assert await admin.replay([dead], dry_run=False) == []
    mail = await stores.claimed()
    assert (mail.key_id, mail.tries) == ("k2", 1)
    fresh, old = (await stores.account()).mails
    assert (fresh.id, fresh.guesses, fresh.counted, old.state) == (mail.id, 1, False, MailState.DEAD)
    assert await stores.rows(COUNTS) == [(1, 0, 0)]


@pytest.mark.parametrize("why", ["queued", "activated", "exhausted", "newer", "taken over", "unknown"])
async def test_what_nobody_waits_for_is_not_replayed(stores: Stores, admin: PostgresMailAdmin, why: str) -> None:
    """Only the newest code mail of a pending account, once it is settled and while its code bears guesses."""
    account = await stores.registered(accepted=True)
    mail = account.mails[0].id
    match why:
        case "queued":
            await stores.passed(31)
            assert await admin.resend(KEY)
            mail = (await stores.account()).mails[0].id
        case "activated":
            await stores.accounts.redeem([redemption(account, mail)])
        case "exhausted":
            for _ in range(POLICY.attempts):
                await stores.accounts.redeem([redemption(account)])
        case "newer":
            await stores.accounts.issue([resend(account)])
        case "taken over":
            await stores.accounts.issue([take_over(account)])
        case _:
            mail = uuid4()
    assert await admin.replay([mail], dry_run=False) == []


async def test_a_replay_leaves_an_account_alone_that_changes_meanwhile(
    stores: Stores, admin: PostgresMailAdmin, database: str
) -> None:
    """It waits for the other transaction and finds another version."""
    await stores.registered()
    dead = (await stores.dead()).id
    with psycopg.connect(database) as other:
        other.execute(RAISE_VERSION)

        async def commit() -> None:
            await trio.to_thread.run_sync(other.execute, SOMEBODY_WAITS)
            other.commit()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit)
            assert await admin.replay([dead], dry_run=False) == []
    assert len((await stores.account()).mails) == 1


async def test_the_time_zone_of_the_database_does_not_matter(database: str, stores: Stores) -> None:
    """Times are in UTC."""
    with psycopg.connect(database, autocommit=True) as operator:
        operator.execute(IN_BERLIN)
    await stores.registered()
    [mail] = await PostgresMailAdmin(stores.postgres, POLICY, "k2").mails()
    assert mail.created_at.utcoffset() == timedelta(0)
