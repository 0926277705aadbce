"""What registrations promise under ENUMERATION=strict: each answers for itself, and one at most can be activated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from actors.domain.mail import MailKind
from actors.domain.user import State
from actors.ports import Missed, Redeemed, Registered
from tests.contracts.shadow_stores import MemoryShadowStore, PostgresShadowStore
from tests.contracts.steps import ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from actors.domain.user import Account
    from actors.ports import NewAccount
    from tests.contracts.conftest import People
    from tests.contracts.shadow_stores import ShadowStore

KEY = "ada@example.com"
DAY = 86400


@pytest.fixture
async def store(store_url: str | None) -> AsyncIterator[ShadowStore]:
    """Open one of the stores, empty."""
    if store_url is None:
        yield MemoryShadowStore()
        return
    async with PostgresShadowStore.open(store_url) as postgres:
        yield postgres


async def enter(store: ShadowStore, new: NewAccount) -> Registered:
    """Register."""
    (registered,) = await store.registrations.enter([new])
    assert isinstance(registered, Registered)
    return registered


async def rows(store: ShadowStore) -> tuple[Account, ...]:
    """Look up every registration of the address."""
    (accounts,) = await store.registrations.find_all([KEY])
    return accounts


async def row(store: ShadowStore, new: NewAccount) -> Account:
    """Look up the one with this registration's password."""
    (account,) = [one for one in await rows(store) if one.password_hash == new.password_hash]
    return account


async def holder(store: ShadowStore) -> Account | None:
    """Look up who holds the address, as open registrations would."""
    (account,) = await store.accounts.find([KEY])
    return account


async def activate(store: ShadowStore, people: People, new: NewAccount) -> Redeemed | Missed | None:
    """Type the code of the registration's mail."""
    account = await row(store, new)
    trial = people.trying(account, account.code.id, hashed=new.password_hash)
    (outcome,) = await store.codes.redeem([trial])
    return outcome


async def die(store: ShadowStore, new: NewAccount) -> None:
    """Let the registration's code expire."""
    await store.mail_accepted(new.mail_id)
    await store.wait(61)


async def test_the_first_registration_is_the_account(store: ShadowStore, people: People) -> None:
    """It holds its address, owes a code, and can be activated like any other."""
    new = people.registering()
    registered = await enter(store, new)
    assert (registered.id, registered.registration) == (new.id, new.registration)
    account = await holder(store)
    assert account is not None
    assert (account.id, account.code.id, account.email_key) == (new.id, new.code_id, KEY)
    assert await store.kind(new.mail_id) is MailKind.CODE
    assert isinstance(await activate(store, people, new), Redeemed)


async def test_a_registration_beside_a_live_one_is_a_shadow(store: ShadowStore, people: People) -> None:
    """It looks like an account in every column that its owner can see, and no code activates it."""
    first, second = people.registering(), people.registering(hashed=b"$2b$12$second")
    await enter(store, first)
    await enter(store, second)
    account = await holder(store)
    assert account is not None
    assert account.id == first.id
    shadow = await row(store, second)
    assert (shadow.id, shadow.email, shadow.email_key) == (second.id, second.email.typed, KEY)
    assert (shadow.state(ATTEMPTS), shadow.attempts_left(ATTEMPTS), shadow.codes_left_today) == (State.QUEUED, 5, 9)
    assert shadow.code.id == second.code_id.silenced()
    assert await activate(store, people, second) is None
    assert isinstance(await activate(store, people, first), Redeemed)


async def test_the_owner_is_told_once_a_day(store: ShadowStore, people: People) -> None:
    """Of any number of registrations of a taken address one a day owes a notice, the others nothing."""
    first = people.registering()
    await enter(store, first)
    await activate(store, people, first)
    kinds = []
    for number in range(3):
        new = people.registering(hashed=b"$2b$12$other%d" % number)
        await enter(store, new)
        kinds.append(await store.kind(new.mail_id))
    await store.wait(DAY + 1)
    late = people.registering(hashed=b"$2b$12$late")
    await enter(store, late)
    assert kinds == [MailKind.NOTICE, MailKind.SILENT, MailKind.SILENT]
    assert await store.kind(late.mail_id) is MailKind.NOTICE


async def test_a_shadows_mail_moves_its_state(store: ShadowStore, people: People) -> None:
    """Queued, sending, accepted, expired: by its own mail, and with its own minute."""
    first, second = people.registering(), people.registering(hashed=b"$2b$12$second")
    await enter(store, first)
    await enter(store, second)
    await store.mail_taken(second.mail_id)
    assert (await row(store, second)).state(ATTEMPTS) is State.SENDING
    await store.mail_accepted(second.mail_id)
    shadow = await row(store, second)
    assert shadow.state(ATTEMPTS) is State.ACCEPTED
    assert shadow.code_expires_in() == pytest.approx(60, abs=1.5)
    await store.wait(61)
    assert (await row(store, second)).state(ATTEMPTS) is State.EXPIRED
    assert (await row(store, first)).state(ATTEMPTS) is State.QUEUED


async def test_a_shadow_counts_its_attempts(store: ShadowStore, people: People) -> None:
    """Five wrong codes kill its code, and no other's."""
    first, second = people.registering(), people.registering(hashed=b"$2b$12$second")
    await enter(store, first)
    await enter(store, second)
    heard = []
    for _ in range(ATTEMPTS):
        trial = people.trying(await row(store, second), None, hashed=second.password_hash)
        heard += await store.codes.redeem([trial])
    assert heard == [Missed(left) for left in (4, 3, 2, 1, 0)]
    assert (await row(store, second)).state(ATTEMPTS) is State.EXHAUSTED
    assert (await row(store, first)).code.attempts == 0


async def test_a_dead_account_loses_its_address_and_goes_on_as_a_shadow(store: ShadowStore, people: People) -> None:
    """Who registers next holds the address; the one before answers as it did, and its code is worth nothing."""
    first, second = people.registering(), people.registering(hashed=b"$2b$12$second")
    await enter(store, first)
    await die(store, first)
    before = await row(store, first)
    await enter(store, second)
    assert await store.kind(second.mail_id) is MailKind.CODE
    after = await row(store, first)
    assert (after.id, after.created_at, after.state(ATTEMPTS)) == (before.id, before.created_at, State.EXPIRED)
    assert after.code.id == first.code_id.silenced()
    assert (await row(store, second)).codes_left_today == 9
    assert isinstance(await activate(store, people, second), Redeemed)
    assert (await row(store, first)).activated_at is None


async def test_an_undelivered_code_of_a_lost_address_activates_nothing(store: ShadowStore, people: People) -> None:
    """A mail that was given up may arrive all the same, when the address is another registration's."""
    first, second = people.registering(), people.registering(hashed=b"$2b$12$second")
    await enter(store, first)
    await store.mail_dead(first.mail_id)
    stale = people.trying(await row(store, first), first.code_id)
    await enter(store, second)
    assert await store.codes.redeem([stale]) == [None]
    assert await activate(store, people, first) is None


async def test_a_resend_takes_a_vacant_address(store: ShadowStore, people: People) -> None:
    """A shadow that asks for a code while nobody's lives becomes the account."""
    first, second = people.registering(), people.registering(hashed=b"$2b$12$second")
    await enter(store, first)
    await enter(store, second)
    await die(store, first)
    code = people.resending(await row(store, second), hashed=second.password_hash)
    (resent,) = await store.codes.issue([code])
    assert resent is not None
    assert resent.codes_left_today == 8
    assert await store.kind(code.mail_id) is MailKind.CODE
    account = await holder(store)
    assert account is not None
    assert (account.id, account.code.id) == (second.id, code.code_id)
    assert isinstance(await activate(store, people, second), Redeemed)


async def test_a_resend_beside_an_active_account_is_silent(store: ShadowStore, people: People) -> None:
    """It answers as any resend, also when it is repeated, and too early; nothing leaves."""
    first, second = people.registering(), people.registering(hashed=b"$2b$12$second")
    await enter(store, first)
    await activate(store, people, first)
    await enter(store, second)
    shadow = await row(store, second)
    early = people.resending(shadow, hashed=second.password_hash)
    assert await store.codes.issue([early]) == [None]
    await store.wait(31)
    code = people.resending(shadow, hashed=second.password_hash)
    for _ in range(2):
        (resent,) = await store.codes.issue([code])
        assert resent is not None
        assert (resent.mail_id, resent.codes_left_today) == (code.mail_id, 8)
        assert resent.resend_in == pytest.approx(30, abs=1.5)
    assert await store.kind(code.mail_id) is not MailKind.CODE
    assert await activate(store, people, second) is None


async def test_an_address_budget_holds_over_all_its_registrations(store: ShadowStore, people: People) -> None:
    """Five real codes an hour, whoever asks; the sixth registration is silent and looks the same."""
    kinds = []
    for number in range(6):
        new = people.registering(hashed=b"$2b$12$%d" % number)
        await enter(store, new)
        kinds.append(await store.kind(new.mail_id))
        await die(store, new)
        assert (await row(store, new)).codes_left_today == 9
    assert kinds == [*[MailKind.CODE] * 5, MailKind.SILENT]
    await store.wait(3600)
    late = people.registering(hashed=b"$2b$12$late")
    await enter(store, late)
    assert await store.kind(late.mail_id) is MailKind.CODE


async def test_the_same_password_finds_its_registration(store: ShadowStore, people: People) -> None:
    """While its code lives nothing changes; after that it gets a new one, and keeps its id and its birth."""
    first, again, later = people.registering(), people.registering(), people.registering()
    registered = await enter(store, first)
    repeated = await enter(store, again)
    assert (repeated.id, repeated.registration) == (first.id, first.registration)
    assert await store.kind(again.mail_id) is None
    await die(store, first)
    renewed = await enter(store, later)
    assert (renewed.id, renewed.registration) == (first.id, later.registration)
    assert len(await rows(store)) == 1
    account = await row(store, later)
    assert (account.code.id, account.codes_left_today, account.superseded) == (later.code_id, 8, (first.code_id,))
    assert account.created_at == renewed.created_at
    assert registered.id == renewed.id


async def test_a_repeated_statement_changes_nothing(store: ShadowStore, people: People) -> None:
    """A registration that was committed before its connection broke is found by its id."""
    first, second = people.registering(), people.registering(hashed=b"$2b$12$second")
    for new in (first, second):
        assert await enter(store, new) == await enter(store, new)
    assert len(await rows(store)) == 2
    assert (await row(store, second)).codes_left_today == 9


async def test_the_owner_who_registers_again_stays_active(store: ShadowStore, people: People) -> None:
    """Who knows the account's password has nothing to be hidden from."""
    first = people.registering()
    await enter(store, first)
    await activate(store, people, first)
    again = people.registering()
    registered = await enter(store, again)
    assert registered.id == first.id
    assert await store.kind(again.mail_id) is None
    (account,) = await rows(store)
    assert account.activated_at is not None


async def test_an_account_of_open_days_is_taken_as_any_other(store: ShadowStore, people: People) -> None:
    """What was registered before the setting changed holds its address and has used its budget."""
    first, second = people.registering(), people.registering(hashed=b"$2b$12$second")
    await store.accounts.register([first])
    await enter(store, second)
    assert await store.kind(second.mail_id) is MailKind.NOTICE
    account = await holder(store)
    assert account is not None
    assert account.id == first.id


async def test_an_address_keeps_its_last_shadows(store: ShadowStore, people: People) -> None:
    """A log-in reads them all, so there are no more than sixty-four, and the account."""
    first = people.registering()
    await enter(store, first)
    new = [people.registering(hashed=b"$2b$12$%d" % number) for number in range(66)]
    for one in new:
        await enter(store, one)
    kept = {account.id for account in await rows(store)}
    assert kept == {first.id, *(one.id for one in new[2:])}


async def test_no_business_counter_counts_a_shadow(database_url: str, people: People) -> None:
    """Registrations, resends and mails are those of accounts; a notice is a mail."""
    async with PostgresShadowStore.open(database_url) as opened:
        new = [people.registering(hashed=b"$2b$12$%d" % number) for number in range(4)]
        for one in new:
            await opened.registrations.enter([one])
        await opened.wait(31)
        ((first, second, *_),) = await opened.registrations.find_all([KEY])
        await opened.codes.issue([people.resending(second, hashed=second.password_hash)])
        assert await opened.counted() == (1, 0, 0, 0)
        await opened.codes.issue([people.resending(first, hashed=first.password_hash)])
        assert await opened.counted() == (1, 1, 0, 0)
        await opened.mail_accepted(new[2].mail_id)
        await opened.mail_dead(new[3].mail_id)
        assert await opened.counted() == (1, 1, 0, 0)


async def test_what_nobody_proved_is_forgotten(database_url: str, people: People) -> None:
    """Thirty days after its last code a registration is gone, of whatever kind, but an active account stays."""
    async with PostgresShadowStore.open(database_url) as opened:
        active, shadow = people.registering(), people.registering(hashed=b"$2b$12$second")
        await opened.registrations.enter([active])
        (account,) = await rows(opened)
        assert isinstance((await opened.codes.redeem([people.trying(account, active.code_id)]))[0], Redeemed)
        await opened.registrations.enter([shadow])
        await opened.wait(29 * DAY)
        await opened.forget()
        assert len(await rows(opened)) == 2
        await opened.wait(2 * DAY)
        await opened.forget()
        (left,) = await rows(opened)
        assert left.id == active.id
