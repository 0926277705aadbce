from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import psycopg
import pytest

from actors.domain.code import Keyring
from actors.domain.email_address import EmailAddress
from actors.domain.mail import MailState
from actors.domain.windows import Rule
from actors.ports import NewAccount, Registered
from service.adapters.postgres import Postgres
from service.adapters.postgres_accounts import PostgresAccounts
from service.adapters.postgres_codes import CodePolicy
from service.adapters.postgres_desk import PostgresDesk
from service.adapters.postgres_metrics import PostgresMetrics
from service.adapters.postgres_outbox import PostgresOutbox
from service.moments import moment

if TYPE_CHECKING:
    from service.embedded.postgres import EmbeddedPostgres

POLICY = CodePolicy(max_age=900, ttl=60, attempts=5, budget=(Rule("codes", 10, 86400),), cooldown=30)
KEYRING = Keyring({"k1": bytes(32)})
ADDRESS = EmailAddress("ann@example.org", "ann@example.org")
ANEW = "UPDATE users SET code_id = 'k1.' || repeat('0', 32), code_mail = 'accepted', code_accepted_at = now()"
SOMEBODY_WAITS = """
DO $$ BEGIN
    WHILE NOT EXISTS (SELECT FROM pg_locks WHERE NOT granted) LOOP PERFORM pg_sleep(0.01); END LOOP;
END $$
"""
IN_BERLIN = """
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone TO %L', current_database(), 'Europe/Berlin'); END $$
"""
BEFORE_A_CHANGE_OF_CLOCKS = """
SELECT cardinality(codes_of_a_day(ARRAY['2026-03-28 13:00Z'::timestamptz], '2026-03-29 12:30Z'))
"""
VESTIBULE = Path(sys.executable).with_name("vestibule")


async def registered(postgres: Postgres) -> NewAccount:
    """Add a pending account whose mail is owed."""
    account = NewAccount(uuid4(), uuid4(), ADDRESS, b"$2b$04$hash", "en", KEYRING.code_id(uuid4()), uuid4())
    [outcome] = await PostgresAccounts(postgres, POLICY, "test").register([account])
    assert isinstance(outcome, Registered)
    return account


async def test_a_dead_mail_is_queued_again_under_the_same_code(database_url: str) -> None:
    """A replay of a mail that was rejected makes it due again, with its code, which still has its life before it."""
    async with Postgres.open(database_url) as postgres:
        account = await registered(postgres)
        outbox, desk = PostgresOutbox(postgres, POLICY, "test"), PostgresDesk(postgres, POLICY)
        [mail] = await outbox.claim([account.mail_id])
        await outbox.dead(mail, "550 rejected")
        [dead] = await desk.mails(state=MailState.DEAD)
        assert (dead.id, dead.reason) == (account.mail_id, "550 rejected")
        assert await desk.replay([dead.id], dry_run=True) == [dead.id]
        assert await outbox.claim_due(10) == []
        assert await desk.replay([dead.id], dry_run=False) == [dead.id]
        [again] = await outbox.claim_due(10)
        assert (again.code_id, again.attempt) == (account.code_id, 1)


async def test_what_nobody_waits_for_is_not_replayed(database_url: str) -> None:
    """Mails of an active account, and of an older code than the newest, stay as they are."""
    async with Postgres.open(database_url) as postgres:
        account = await registered(postgres)
        outbox, desk = PostgresOutbox(postgres, POLICY, "test"), PostgresDesk(postgres, POLICY)
        [mail] = await outbox.claim([account.mail_id])
        await outbox.dead(mail, "550 rejected")
        newer = uuid4()
        assert await desk.resend(ADDRESS.key, KEYRING.code_id(uuid4()), newer)
        assert await desk.replay([account.mail_id], dry_run=False) == []
        [second] = await outbox.claim([newer])
        await outbox.dead(second, "550 rejected")
        assert await desk.activate(ADDRESS.key)
        assert await desk.replay([newer], dry_run=False) == []


async def test_a_replay_leaves_alone_who_registers_anew_meanwhile(database_url: str) -> None:
    """That account's own mail has left; waiting for the old one, it would keep its address for ever."""
    async with Postgres.open(database_url) as postgres:
        account = await registered(postgres)
        outbox, desk = PostgresOutbox(postgres, POLICY, "test"), PostgresDesk(postgres, POLICY)
        [mail] = await outbox.claim([account.mail_id])
        await outbox.dead(mail, "550 rejected")
        with psycopg.connect(database_url) as another:
            another.execute(ANEW)

            async def commit() -> None:
                await anyio.to_thread.run_sync(another.execute, SOMEBODY_WAITS)
                another.commit()

            async with anyio.create_task_group() as group:
                group.start_soon(commit)
                assert await desk.replay([mail.id], dry_run=False) == []
        shown = await desk.show(ADDRESS.key)
        assert shown is not None
        assert shown.code_mail == "accepted"


async def test_resends_in_a_row_leave_the_code_that_has_arrived_alive(database_url: str) -> None:
    """It dies when a newer mail is accepted; the codes whose mails never left are none that anybody has."""
    async with Postgres.open(database_url) as postgres:
        account = await registered(postgres)
        outbox, desk = PostgresOutbox(postgres, POLICY, "test"), PostgresDesk(postgres, POLICY)
        [mail] = await outbox.claim([account.mail_id])
        assert await outbox.accepted(mail)
        second, third = KEYRING.code_id(uuid4()), KEYRING.code_id(uuid4())
        assert await desk.resend(ADDRESS.key, second, uuid4())
        assert await desk.resend(ADDRESS.key, third, uuid4())
        [found] = await PostgresAccounts(postgres, POLICY, "test").find([ADDRESS.key])
        assert found is not None
        assert [code.id for code in found.live_codes(POLICY.attempts)] == [third, account.code_id]
        assert found.superseded == (second,)


async def test_an_account_is_shown_activated_and_deleted(database_url: str) -> None:
    """The desk's words change one account once; a second time there is nothing to change."""
    async with Postgres.open(database_url) as postgres:
        account = await registered(postgres)
        desk = PostgresDesk(postgres, POLICY)
        shown = await desk.show(ADDRESS.key)
        assert shown is not None
        assert (shown.id, shown.activated_at, shown.code_alive) == (account.id, None, True)
        assert await desk.activate(ADDRESS.key)
        assert not await desk.activate(ADDRESS.key)
        assert not await desk.resend(ADDRESS.key, KEYRING.code_id(uuid4()), uuid4())
        assert await desk.delete(ADDRESS.key)
        assert not await desk.delete(ADDRESS.key)
        assert await desk.show(ADDRESS.key) is None
        assert await desk.mails() == []


async def test_the_time_zone_of_the_database_does_not_matter(database_url: str) -> None:
    """Times are in UTC, and a code of 23.5 hours ago counts against the day's budget though clocks have changed."""
    with psycopg.connect(database_url, autocommit=True) as operator:
        operator.execute(IN_BERLIN)
    async with Postgres.open(database_url) as postgres:
        await registered(postgres)
        [mail] = await PostgresDesk(postgres, POLICY).mails()
        assert mail.created_at.utcoffset() == timedelta(0)
        assert await postgres.run(BEFORE_A_CHANGE_OF_CLOCKS) == [(1,)]


async def test_what_an_operator_does_for_an_account_is_counted(database_url: str) -> None:
    """A resend and an activation count once each, as if the person had asked; what changes nothing counts as none."""
    async with Postgres.open(database_url) as postgres:
        await registered(postgres)
        desk = PostgresDesk(postgres, POLICY)
        assert await desk.resend(ADDRESS.key, KEYRING.code_id(uuid4()), uuid4())
        assert await desk.activate(ADDRESS.key)
        assert not await desk.activate(ADDRESS.key)
        assert not await desk.resend(ADDRESS.key, KEYRING.code_id(uuid4()), uuid4())
        counted = await PostgresMetrics(postgres).business()
    assert (counted.registrations, counted.resends, counted.activations) == (1, 1, 1)


async def test_the_command_lists_without_code_and_hash(database_url: str, tmp_path: Path) -> None:
    """`vestibule mail list --json` and `user show --json` print what is known, and no secret of it."""
    async with Postgres.open(database_url) as postgres:
        account = await registered(postgres)
    environment = os.environ | {
        "VESTIBULE_DATABASE_URL": database_url,
        "VESTIBULE_REDIS_URL": "redis://127.0.0.1:1",
        "VESTIBULE_MAIL_URL": "smtp://127.0.0.1:1",
        "VESTIBULE_DATA_DIR": str(tmp_path),
    }
    mails = await anyio.run_process([VESTIBULE, "mail", "list", "--json"], env=environment)
    user = await anyio.run_process([VESTIBULE, "user", "show", "Ann@EXAMPLE.org", "--json"], env=environment)
    assert [mail["id"] for mail in json.loads(mails.stdout)] == [str(account.mail_id)]
    assert json.loads(user.stdout)["id"] == str(account.id)
    for secret in (account.password_hash, KEYRING.code(account.id, account.code_id).encode()):
        assert secret not in mails.stdout + user.stdout


@pytest.mark.parametrize(
    ("words", "named"), [(["mail", "list", "--limit", "-1"], "--limit"), (["user", "show", "a@b.example"], "migrate")]
)
async def test_what_the_database_would_refuse_is_one_line(
    postgres_server: EmbeddedPostgres, tmp_path: Path, words: list[str], named: str
) -> None:
    """A number of mails that is none, and a database without tables: no traceback, which may show an address."""
    environment = os.environ | {
        "VESTIBULE_DATABASE_URL": postgres_server.url_of("postgres"),
        "VESTIBULE_DATA_DIR": str(tmp_path),
    }
    ended = await anyio.run_process([VESTIBULE, *words], env=environment, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(b"vestibule: ")
    assert ended.stderr.count(b"\n") == 1
    assert named in ended.stderr.decode()


@pytest.mark.parametrize(("text", "ago"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400)])
def test_since_takes_durations(text: str, ago: int) -> None:
    """A number and a unit mean so long ago."""
    assert abs((datetime.now(UTC) - moment(text)) - timedelta(seconds=ago)) < timedelta(seconds=5)


def test_since_takes_times_and_refuses_the_rest() -> None:
    """An RFC 3339 time means itself, UTC where it names no zone; anything else is one line."""
    assert moment("2026-01-31T12:00:00Z") == moment("2026-01-31T12:00:00") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    for text in ("yesterday", "999999d"):
        with pytest.raises(ValueError, match="must be 90s"):
            moment(text)
