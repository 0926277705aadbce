"""The accounts in PostgreSQL, one call at a time: what is written, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from actors.domain.mail import MailKind, MailState
from actors.ports import Answer, KeyUse, Missed, Redeemed
from tests.fakes.accounts import POLICY
from tests.integration.conftest import HASH, Stores, new_account, redemption, resend, take_over

KEY = KeyUse(b"k" * 32, b"b" * 32)


async def test_a_registration_is_an_account_a_mail_an_answer_and_a_count(stores: Stores) -> None:
    """All of it by one statement, and read back as it was written."""
    new = new_account("Ada@Example.com", KEY)
    [registered] = await stores.accounts.add([new])
    account = await stores.account("ada@example.com")
    assert registered is not None
    assert (registered.account, registered.registration, registered.created_at) == (new.id, 1, account.created_at)
    assert (account.id, account.email, account.email_key) == (new.id, "Ada@Example.com", "ada@example.com")
    assert (account.password_hash, account.locale, account.activated_at) == (HASH, "en", None)
    assert (account.registration, account.version, account.noticed_at) == (1, 1, None)
    [mail] = account.mails
    assert (mail.id, mail.number, mail.registration, mail.key_id) == (new.mail.id, 1, 1, "k1")
    assert (mail.state, mail.guesses, mail.counted, mail.accepted_at) == (MailState.QUEUED, 0, True, None)
    assert (mail.expires_at - mail.created_at).total_seconds() == POLICY.max_age_seconds
    assert await stores.accounts.find_answers([KEY.digest]) == {KEY.digest: Answer(KEY.body_digest, registered)}
    assert await stores.rows("SELECT registrations FROM vestibule.business_counts") == [(1,)]
    [by_id, nobody] = await stores.accounts.find_by_id([account.id, uuid4()])
    assert by_id is not None
    assert (replace(by_id, read_at=account.read_at), nobody) == (account, None)


async def test_a_taken_address_gets_nothing(stores: Stores) -> None:
    """Neither mail nor answer nor count; its neighbours of the batch get theirs."""
    await stores.registered()
    loser, winner = new_account("ADA@example.com", KEY), new_account("bob@example.com")
    assert [outcome is None for outcome in await stores.accounts.add([loser, winner])] == [True, False]
    assert await stores.accounts.find_answers([KEY.digest]) == {}
    assert await stores.rows("SELECT count(*) FROM vestibule.mails") == [(2,)]
    assert await stores.rows("SELECT registrations FROM vestibule.business_counts") == [(2,)]


async def test_a_repeat_of_what_was_written_has_the_same_outcome(stores: Stores) -> None:
    """A statement whose answer was lost is run again: nothing is written twice."""
    new = new_account("ada@example.com", KEY)
    assert await stores.accounts.add([new]) == await stores.accounts.add([new])
    issue = resend(await stores.account())
    assert await stores.accounts.issue([issue]) == await stores.accounts.issue([issue])
    assert (await stores.account()).version == 2
    assert await stores.rows("SELECT registrations, resends FROM vestibule.business_counts") == [(1, 1)]


async def test_an_issue_needs_the_version_that_was_read(stores: Stores) -> None:
    """An account that has changed since is not written to."""
    account = await stores.registered()
    assert (await stores.accounts.issue([resend(account)]))[0] is not None
    assert await stores.accounts.issue([resend(account)]) == [None]
    assert await stores.accounts.issue([take_over(account)]) == [None]
    assert len((await stores.account()).mails) == 2


@pytest.mark.parametrize(
    ("tried", "older"), [(False, MailState.SUPERSEDED), (True, MailState.ACCEPTED)], ids=["untried", "accepted"]
)
async def test_an_issue_supersedes_what_cannot_have_arrived(stores: Stores, *, tried: bool, older: MailState) -> None:
    """What was never tried is superseded at once; what may have arrived lives until the new mail is accepted."""
    account = await stores.registered(accepted=tried)
    await stores.accounts.issue([resend(account)])
    account = await stores.account()
    assert [mail.state for mail in account.mails] == [MailState.QUEUED, older]
    mail = await stores.claimed()
    assert mail.id == account.mails[0].id
    await stores.queue.accepted([mail])
    assert [mail.state for mail in (await stores.account()).mails] == [MailState.ACCEPTED, MailState.SUPERSEDED]


async def test_a_code_that_never_left_gives_way_to_the_next(stores: Stores) -> None:
    """Of two resends without an acceptance the first is superseded; the code that may have arrived stays."""
    arrived = (await stores.registered(accepted=True)).mails[0].id
    for _ in range(2):
        await stores.accounts.issue([resend(await stores.account())])
    account = await stores.account()
    assert [mail.state for mail in account.mails] == [MailState.QUEUED, MailState.SUPERSEDED, MailState.ACCEPTED]
    assert [mail.id for mail in account.live_mails(POLICY)] == [account.mails[0].id, arrived]
    assert [mail.id for mail in account.superseded_mails()] == [account.mails[1].id]


async def test_a_deleted_account_is_neither_issued_nor_redeemed(stores: Stores) -> None:
    """It has changed since it was read; its neighbours of the batch have not."""
    gone, there = await stores.registered("gone@example.com"), await stores.registered()
    await stores.postgres.run("DELETE FROM vestibule.accounts WHERE email_key = 'gone@example.com'")
    assert [bool(one) for one in await stores.accounts.issue([resend(gone), resend(there)])] == [False, True]
    there = await stores.account()
    hits = [redemption(one, one.mails[0].id) for one in (gone, there)]
    assert [type(one) for one in await stores.accounts.redeem(hits)] == [type(None), Redeemed]


async def test_a_take_over_is_a_new_registration_of_the_same_account(stores: Stores) -> None:
    """New password, spelling, locale and number; the account's own time stays, and the old mail never leaves."""
    account = await stores.registered()
    [registered] = await stores.accounts.issue([take_over(account, key=KEY)])
    after = await stores.account()
    assert registered is not None
    assert (registered.account, registered.registration, registered.created_at) == (account.id, 2, account.created_at)
    assert (after.email, after.email_key, after.locale) == ("ADA@EXAMPLE.COM", "ada@example.com", "de")
    assert after.password_hash != account.password_hash
    assert (after.registration, after.version, after.created_at) == (2, 2, account.created_at)
    assert after.registered_at > account.registered_at
    assert [(mail.registration, mail.state) for mail in after.mails] == [
        (2, MailState.QUEUED),
        (1, MailState.SUPERSEDED),
    ]
    assert (await stores.accounts.find_answers([KEY.digest]))[KEY.digest].registered == registered
    assert await stores.rows("SELECT registrations, resends FROM vestibule.business_counts") == [(2, 0)]


async def test_a_notice_is_owed_to_an_active_account_and_supersedes_nothing(stores: Stores) -> None:
    """It counts as nothing, and is read back as the time of the last one of this registration, also a day later."""
    account = await stores.registered(accepted=True)
    await stores.accounts.redeem([redemption(account, account.mails[0].id)])
    account = await stores.account()
    assert await stores.accounts.issue([resend(account)]) == [None]
    assert (await stores.accounts.issue([resend(account, MailKind.NOTICE)]))[0] is not None
    notice = await stores.claimed()
    assert notice.kind is MailKind.NOTICE
    await stores.queue.accepted([notice])
    await stores.passed(86401)
    account = await stores.account()
    assert account.noticed_at is not None
    assert [mail.state for mail in account.mails] == [MailState.ACCEPTED]
    assert await stores.rows("SELECT sum(registrations)::int, sum(resends)::int FROM vestibule.business_counts") == [
        (1, 0)
    ]


async def test_a_key_is_bound_for_a_day(stores: Stores) -> None:
    """Then it is unknown, and may be bound again."""
    other = KeyUse(KEY.digest, b"o" * 32)
    await stores.accounts.bind_taken([KEY])
    await stores.accounts.bind_taken([other])
    assert await stores.accounts.find_answers([KEY.digest]) == {KEY.digest: Answer(KEY.body_digest, None)}
    await stores.passed(86401)
    assert await stores.accounts.find_answers([KEY.digest]) == {}
    await stores.accounts.add([new_account("ada@example.com", other)])
    answer = (await stores.accounts.find_answers([KEY.digest]))[KEY.digest]
    assert answer.body_digest == other.body_digest
    assert answer.registered is not None


async def test_a_miss_counts_on_every_live_code(stores: Stores) -> None:
    """Both codes of a resend lose a guess, and a hit on the older one still activates."""
    account = await stores.registered(accepted=True)
    await stores.accounts.redeem([redemption(account)])
    await stores.accounts.issue([resend(account)])
    account = await stores.account()
    assert await stores.accounts.redeem([redemption(account)]) == [Missed(4)]
    account = await stores.account()
    assert [mail.guesses for mail in account.mails] == [1, 2]
    [outcome] = await stores.accounts.redeem([redemption(account, account.mails[1].id)])
    assert isinstance(outcome, Redeemed)


async def test_a_miss_that_was_not_compared_with_every_live_code_counts_nothing(stores: Stores) -> None:
    """A code issued in between must be looked at first."""
    account = await stores.registered(accepted=True)
    await stores.accounts.issue([resend(account)])
    assert await stores.accounts.redeem([redemption(account)]) == [None]
    assert [mail.guesses for mail in (await stores.account()).mails] == [0, 0]


@pytest.mark.parametrize("change", ["password", "registration", "expired", "superseded", "dead"])
async def test_a_redeem_needs_the_account_and_the_code_as_they_were_read(stores: Stores, change: str) -> None:
    """Another password or registration, an expired, superseded or dead code: nothing happens, not even a guess."""
    read = account = await stores.registered()
    code = account.mails[0].id
    match change:
        case "password":
            read = replace(account, password_hash=b"$2b$04$" + b"z" * 53)
        case "registration":
            read = replace(account, registration=2)
        case "expired":
            await stores.passed(POLICY.max_age_seconds + 1)
        case "dead":
            await stores.dead()
        case _:
            await stores.accounts.issue([resend(account)])
    assert await stores.accounts.redeem([redemption(read, code)]) == [None]
    after = await stores.account()
    assert (after.activated_at, [mail.guesses for mail in after.mails if mail.id == code]) == (None, [0])


async def test_mails_of_earlier_registrations_are_read_for_a_day(stores: Stores) -> None:
    """They count for the budgets; older ones are of no use."""
    account = await stores.registered()
    await stores.accounts.issue([take_over(account)])
    assert len((await stores.account()).mails) == 2
    await stores.passed(86401)
    assert [mail.registration for mail in (await stores.account()).mails] == [2]
