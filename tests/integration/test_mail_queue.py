"""The owed mails in PostgreSQL: claims, leases, fences, and what becomes of each mail."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from actors.domain.mail import MailKind, MailState, Outcome
from actors.domain.user import State
from service.postgres.mails import KEPT_DAYS, KILLS, LEASE_SECONDS, PURGED_ROWS, purge
from tests.fakes.accounts import POLICY
from tests.integration.conftest import Stores, new_mail, redemption, resend, take_over

DAY = 86400


async def test_a_claim_takes_what_is_due_under_a_lease(stores: Stores) -> None:
    """With all that sending needs; it is not due again until the lease ends."""
    account = await stores.registered("Ada@example.com".casefold())
    mail = await stores.claimed()
    assert (mail.id, mail.account, mail.recipient) == (account.mails[0].id, account.id, "ada@example.com")
    assert (mail.kind, mail.key_id, mail.locale, mail.tries, mail.fence) == (MailKind.CODE, "k1", "en", 1, 1)
    assert (mail.alone, mail.traceparent) == (False, None)
    assert POLICY.max_age_seconds - 5 < mail.life_left <= POLICY.max_age_seconds
    assert (await stores.account()).state(POLICY) is State.SENDING
    assert await stores.queue.claim(10) == []


async def test_claims_take_the_longest_due_first_and_no_more_than_asked(stores: Stores) -> None:
    """A batch is bounded, and nobody overtakes; a mail that is put back is due at once, and it cost it no try."""
    for number in range(5):
        await stores.registered(f"user{number}@example.com")
    first, second = await stores.queue.claim(2)
    assert [first.recipient, second.recipient] == ["user0@example.com", "user1@example.com"]
    await stores.settled(second, Outcome.PUT_BACK)
    again, *others = await stores.queue.claim(10)
    assert (again.id, again.tries, again.fence, len(others)) == (second.id, 1, 2, 3)


async def test_a_claim_takes_one_code_mail_an_account(stores: Stores) -> None:
    """The newest; the older one waits for the next claim, and a notice beside it does not matter."""
    account = await stores.registered()
    older = await stores.claimed()
    await stores.settled(older, Outcome.DEFERRED, "450 4.2.0", 0.0)
    await stores.accounts.issue([resend(account)])
    account = await stores.account()
    await stores.accounts.issue([resend(account, MailKind.NOTICE)])
    kinds = {mail.kind: mail.id for mail in await stores.queue.claim(10)}
    assert kinds[MailKind.CODE] == account.mails[0].id
    assert len(kinds) == 2
    assert [mail.id for mail in await stores.queue.claim(10)] == [older.id]


async def test_an_accepted_mail_starts_the_minute(stores: Stores) -> None:
    """Its code expires by the database's clock, and never after the cap."""
    await stores.registered()
    await stores.queue.accepted([await stores.claimed()])
    [mail] = (await stores.account()).mails
    assert mail.accepted_at is not None
    assert (mail.expires_at - mail.accepted_at).total_seconds() == POLICY.ttl_seconds
    await stores.registered("late@example.com")
    await stores.passed(POLICY.max_age_seconds - 5)
    late = await stores.claimed()
    await stores.queue.accepted([late])
    [mail] = (await stores.account("late@example.com")).mails
    assert mail.accepted_at is not None
    assert 0 < (mail.expires_at - mail.accepted_at).total_seconds() <= 5
    assert await stores.queue.accepted([late]) == {late.id}, "a statement whose answer was lost is run again"
    assert await stores.rows("SELECT mails_accepted FROM vestibule.business_counts") == [(2,)]


async def test_a_claim_that_was_lost_changes_nothing(stores: Stores) -> None:
    """Behind a newer fence every outcome of the older claim is refused."""
    await stores.registered()
    lost = await stores.claimed()
    await stores.passed(LEASE_SECONDS)
    held = await stores.claimed()
    assert (held.id, held.fence, held.alone) == (lost.id, lost.fence + 1, True)
    for outcome in (Outcome.DEFERRED, Outcome.DEAD, Outcome.PUT_BACK):
        await stores.settled(lost, outcome, "late")
    assert await stores.queue.accepted([lost]) == await stores.queue.extend([lost]) == set()
    assert await stores.queue.reissue(lost, new_mail()) is None
    assert [mail.state for mail in (await stores.account()).mails] == [MailState.SENDING]
    assert await stores.queue.accepted([held]) == {held.id}


async def test_a_lease_that_is_extended_is_kept(stores: Stores) -> None:
    """While its worker lives nobody else takes the mail."""
    await stores.registered()
    mail = await stores.claimed()
    await stores.passed(LEASE_SECONDS - 5)
    assert await stores.queue.extend([mail, replace(mail, id=uuid4())]) == {mail.id}
    await stores.passed(LEASE_SECONDS - 5)
    assert await stores.queue.claim(10) == []


async def test_a_deferred_mail_waits_as_long_as_told(stores: Stores) -> None:
    """Its reason is kept until it is accepted, and a surviving worker clears the deaths."""
    await stores.registered()
    await stores.claimed()
    await stores.passed(LEASE_SECONDS)
    mail = await stores.claimed()
    await stores.settled(mail, Outcome.DEFERRED, "450 4.2.0 greylisted", 30.0)
    assert await stores.rows("SELECT state, reason, deaths FROM vestibule.mails") == [
        ("queued", "450 4.2.0 greylisted", 0)
    ]
    assert await stores.queue.claim(10) == []
    await stores.passed(30)
    again = await stores.claimed()
    assert (again.tries, again.fence, again.alone) == (3, 3, False)
    await stores.queue.accepted([again])
    assert await stores.rows("SELECT reason FROM vestibule.mails") == [(None,)]


async def test_a_mail_that_kills_its_workers_is_dead_after_the_third(stores: Stores) -> None:
    """After the first death it is tried alone, and stops by itself."""
    await stores.registered()
    for death in range(KILLS):
        assert (await stores.claimed()).alone is (death > 0)
        await stores.passed(LEASE_SECONDS)
    assert await stores.queue.claim(10) == []
    assert await stores.rows("SELECT state, reason FROM vestibule.mails") == [("dead", "ended its worker 3 times")]
    assert await stores.rows("SELECT mails_dead FROM vestibule.business_counts") == [(1,)]


async def test_a_mail_is_given_up_after_a_day(stores: Stores) -> None:
    """By the time it was first owed, through every reissue; with its last reason."""
    await stores.registered()
    await stores.passed(DAY - 60)
    mail = await stores.claimed()
    reissued = await stores.queue.reissue(mail, new_mail())
    assert reissued is not None
    await stores.settled(reissued, Outcome.DEFERRED, "421 try later", 0.0)
    await stores.passed(59)
    assert (await stores.account()).is_held(POLICY)
    await stores.passed(1)
    assert await stores.queue.claim(10) == []
    account = await stores.account()
    assert (account.state(POLICY), account.is_held(POLICY)) == (State.UNDELIVERABLE, False)
    assert await stores.rows("SELECT reason FROM vestibule.mails WHERE state = 'dead'") == [
        ("given up after 24 h: 421 try later",)
    ]


@pytest.mark.parametrize("why", ["activated", "taken over", "exhausted"])
async def test_a_mail_that_nobody_needs_is_never_sent(stores: Stores, why: str) -> None:
    """It is superseded when it is claimed, and is no dead mail."""
    account = await stores.registered()
    await stores.settled(await stores.claimed(), Outcome.DEFERRED, "450", 0.0)
    if why == "activated":
        await stores.accounts.redeem([redemption(account, account.mails[0].id)])
    elif why == "exhausted":
        for _ in range(POLICY.attempts):
            await stores.accounts.redeem([redemption(account)])
    else:
        await stores.accounts.issue([take_over(account)])
        [fresh] = await stores.queue.claim(10)
        assert fresh.id != account.mails[0].id
    assert await stores.queue.claim(10) == []
    assert await stores.rows("SELECT count(*) FROM vestibule.mails WHERE state = 'superseded'") == [(1,)]
    assert await stores.rows("SELECT sum(mails_dead) FROM vestibule.business_counts") == [(0,)]


async def test_a_mail_that_is_too_old_is_reissued_with_its_guesses(stores: Stores) -> None:
    """A fresh code under a fresh cap, which counts against no budget; the old one is superseded."""
    account = await stores.registered()
    mail = await stores.claimed()
    await stores.accounts.redeem([redemption(account)])
    new = new_mail()
    reissued = await stores.queue.reissue(mail, new)
    assert reissued is not None
    assert (reissued.id, reissued.key_id, reissued.life_left) == (new.id, new.key_id, POLICY.max_age_seconds)
    assert (reissued.recipient, reissued.tries, reissued.fence) == (mail.recipient, 1, 1)
    after = await stores.account()
    assert [(one.id, one.state, one.guesses, one.counted) for one in after.mails] == [
        (new.id, MailState.SENDING, 1, False),
        (mail.id, MailState.SUPERSEDED, 1, True),
    ]
    assert await stores.queue.accepted([reissued]) == {new.id}
    assert POLICY.codes_left_today(after.code_ages()) == 9


@pytest.mark.parametrize("activated", [True, False])
async def test_a_reissue_that_nobody_needs_is_refused(stores: Stores, *, activated: bool) -> None:
    """Of an active account, or of a code that is used up: the old mail is superseded and not sent."""
    account = await stores.registered()
    mail = await stores.claimed()
    for _ in range(1 if activated else POLICY.attempts):
        await stores.accounts.redeem([redemption(account, account.mails[0].id if activated else None)])
    assert await stores.queue.reissue(mail, new_mail()) is None
    assert await stores.rows("SELECT state FROM vestibule.mails") == [("superseded",)]


async def test_a_repeated_reissue_has_the_same_outcome(stores: Stores) -> None:
    """A statement whose answer was lost is run again: there is one fresh mail, and both answers name its claim."""
    await stores.registered()
    mail, new = await stores.claimed(), new_mail()
    assert await stores.queue.reissue(mail, new) == await stores.queue.reissue(mail, new)
    assert len((await stores.account()).mails) == 2


async def test_a_reissue_leaves_the_code_that_has_arrived_alive(stores: Stores) -> None:
    """It dies when the newer mail is accepted, however often that one's code was replaced on the way."""
    account = await stores.registered(accepted=True)
    await stores.accounts.issue([resend(account)])
    fresh = await stores.queue.reissue(await stores.claimed(), new_mail())
    assert fresh is not None
    read = await stores.account()
    assert [mail.id for mail in read.live_mails(POLICY)] == [fresh.id, account.mails[0].id]
    await stores.queue.accepted([fresh])
    assert [mail.id for mail in (await stores.account()).live_mails(POLICY)] == [fresh.id]


@pytest.mark.parametrize("outcome", ["accepted", "dead", "superseded"])
async def test_what_is_settled_stays_settled(stores: Stores, outcome: str) -> None:
    """The outcome of a claim is written once; a later one of the same claim changes and counts nothing."""
    account = await stores.registered()
    mail = await stores.claimed()
    if outcome == "accepted":
        await stores.queue.accepted([mail])
    elif outcome == "dead":
        await stores.settled(mail, Outcome.DEAD, "550")
    else:
        await stores.accounts.issue([resend(account)])
        await stores.queue.accepted(await stores.queue.claim(10))
    counted = await stores.rows("SELECT * FROM vestibule.business_counts")
    await stores.settled(mail, Outcome.DEAD, "late")
    await stores.settled(mail, Outcome.DEFERRED, "late", 0.0)
    await stores.settled(mail, Outcome.PUT_BACK)
    assert await stores.queue.accepted([mail]) == ({mail.id} if outcome == "accepted" else set())
    assert await stores.queue.extend([mail]) == set()
    assert (await stores.account()).mails[-1].state == outcome
    assert await stores.rows("SELECT * FROM vestibule.business_counts") == counted
    await stores.passed(LEASE_SECONDS)
    assert await stores.queue.claim(10) == []


OLD_MAILS = """
INSERT INTO vestibule.mails (id, account_id, registration, number, kind, state, expires_at, key_id)
SELECT gen_random_uuid(), id, 1, 1 + n, 'code', %(state)s, now(), 'k1'
FROM vestibule.accounts, generate_series(%(first)s::int, %(last)s::int) AS n
"""
OLD_ANSWERS = """
INSERT INTO vestibule.answers (digest, body_digest, expires_at)
SELECT sha256(n::text::bytea), '', now() + make_interval(secs => n - %(expired)s)
FROM generate_series(1, %(all)s::int) AS n
"""


async def test_what_has_expired_is_purged_however_much_it_is(stores: Stores) -> None:
    """Bound keys, and settled mails by their id and the database's clock; owed ones stay, whatever their age."""
    await stores.registered()
    many = 2 * PURGED_ROWS
    await stores.postgres.run(OLD_MAILS, {"state": "accepted", "first": 1, "last": many})
    await stores.postgres.run(OLD_MAILS, {"state": "dead", "first": many + 1, "last": many + 1})
    await stores.postgres.run(OLD_ANSWERS, {"expired": many + 1, "all": many + 61})
    await purge(stores.postgres, UUID(int=0))
    assert await stores.rows("SELECT count(*) FROM vestibule.mails") == [(many + 2,)]
    assert await stores.rows("SELECT count(*) FROM vestibule.answers") == [(60,)]
    await purge(stores.postgres, UUID(int=2**128 - 1))
    assert await stores.rows("SELECT count(*) FROM vestibule.mails") == [(many + 2,)]
    await stores.passed(KEPT_DAYS * 86400)
    await purge(stores.postgres, UUID(int=2**128 - 1))
    assert await stores.rows("SELECT state FROM vestibule.mails") == [("queued",)]
