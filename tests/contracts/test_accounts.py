"""What the store of accounts promises about registrations, in memory as in Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from actors.domain.errors import CodesExhausted, EmailTaken
from actors.domain.user import CodeMail, State
from actors.ports import Registered
from tests.contracts.steps import ATTEMPTS, find, issue, miss, redeem, refused, register

if TYPE_CHECKING:
    from tests.contracts.conftest import People, Store


async def test_a_new_account_is_pending_with_an_owed_mail(store: Store, people: People) -> None:
    """What was registered is found as typed and by its key, with its first code and budget."""
    new = people.registering()
    registered = await register(store, new)
    account = await find(store)
    assert registered == Registered(new.id, new.registration, account.created_at, new.mail_id)
    assert (account.email, account.email_key) == ("Ada@Example.Com", "ada@example.com")
    assert (account.id, account.registration, account.locale) == (new.id, new.registration, "en")
    assert account.password_hash == new.password_hash
    assert (account.code.id, account.code.attempts, account.code_mail) == (new.code_id, 0, CodeMail.OWED)
    assert (account.activated_at, account.accepted_at, account.old_code, account.superseded) == (None, None, None, ())
    assert account.state(ATTEMPTS) is State.QUEUED
    assert account.codes_left_today == 9
    assert 28 < account.resend_in() <= 30


async def test_accounts_are_found_in_the_order_asked_for(store: Store, people: People) -> None:
    """A look-up of several answers each in its place, unknown and repeated ones too."""
    await register(store, people.registering())
    found = await store.accounts.find(["no@example.com", "ada@example.com", "ada@example.com"])
    assert [account and account.email_key for account in found] == [None, "ada@example.com", "ada@example.com"]


async def test_a_batch_registers_each_in_its_place(store: Store, people: People) -> None:
    """A batch answers each with its own fate."""
    await register(store, people.registering())
    other = type(people)("bob@example.com").registering()
    taken, added = await store.accounts.register([people.registering(), other])
    assert isinstance(taken, EmailTaken)
    assert isinstance(added, Registered)
    assert added == Registered(other.id, other.registration, added.created_at, other.mail_id)


async def test_a_registration_repeated_changes_nothing(store: Store, people: People) -> None:
    """The same registration twice, as after a lost answer, has the same outcome."""
    new = people.registering()
    assert await register(store, new) == await register(store, new)
    assert (await find(store)).codes_left_today == 9


@pytest.mark.parametrize("mail", ["owed", "taken", "accepted"])
async def test_an_address_under_a_live_code_or_an_owed_mail_is_taken(store: Store, people: People, mail: str) -> None:
    """Nobody replaces the password of an account whose owner is about to activate it."""
    new = people.registering()
    await register(store, new)
    if mail == "taken":
        await store.mail_taken(new.mail_id)
    if mail == "accepted":
        await store.mail_accepted(new.mail_id)
    await store.wait(58)
    assert isinstance(await refused(store, people.registering(hashed=b"$2b$12$other")), EmailTaken)
    assert (await find(store)).password_hash == new.password_hash


async def test_an_owed_mail_keeps_the_address_past_the_codes_hard_cap(store: Store, people: People) -> None:
    """While the mail is owed the state is queued, however long the mail server is away."""
    await register(store, people.registering())
    await store.wait(3600)
    assert isinstance(await refused(store, people.registering()), EmailTaken)
    assert (await find(store)).state(ATTEMPTS) is State.QUEUED


async def test_an_active_address_is_taken_for_ever(store: Store, people: People) -> None:
    """Activation is final."""
    new = people.registering()
    await register(store, new)
    await redeem(store, people.trying(await find(store), new.code_id))
    await store.wait(90000)
    assert isinstance(await refused(store, people.registering()), EmailTaken)


@pytest.mark.parametrize("death", ["expired", "exhausted", "undeliverable"])
async def test_a_pending_account_whose_code_is_dead_may_be_registered_again(
    store: Store, people: People, death: str
) -> None:
    """The new password replaces the old one, the account keeps its id, and the dead code is remembered."""
    first = people.registering()
    await register(store, first)
    if death == "undeliverable":
        await store.mail_dead(first.mail_id)
    else:
        await store.mail_accepted(first.mail_id)
    if death == "exhausted":
        await miss(store, people, ATTEMPTS)
    if death == "expired":
        await store.wait(61)
    assert (await find(store)).state(ATTEMPTS) is State(death)
    second = people.registering(hashed=b"$2b$12$second")
    registered = await register(store, second)
    account = await find(store)
    assert (registered.id, registered.registration) == (first.id, second.registration)
    assert (account.id, account.password_hash, account.code.id) == (first.id, b"$2b$12$second", second.code_id)
    assert (account.code.attempts, account.state(ATTEMPTS), account.accepted_at) == (0, State.QUEUED, None)
    assert account.superseded == (first.code_id,)
    assert account.codes_left_today == 8


async def test_a_registration_is_found_until_it_is_replaced(store: Store, people: People) -> None:
    """A status address shows the registration that it was made for, and no other."""
    first = people.registering()
    await register(store, first)
    (found, unknown) = await store.accounts.find_registrations([first.registration, uuid4()])
    assert found is not None
    assert (found.id, unknown) == (first.id, None)
    await store.mail_dead(first.mail_id)
    second = people.registering()
    await register(store, second)
    gone, there = await store.accounts.find_registrations([first.registration, second.registration])
    assert gone is None
    assert there is not None


async def test_the_old_password_does_not_redeem_a_registration_that_replaced_it(store: Store, people: People) -> None:
    """A redeem names the password hash that was checked: a re-registration in between ends it."""
    first, second = people.registering(), people.registering(hashed=b"$2b$12$second")
    await register(store, first)
    await store.mail_dead(first.mail_id)
    await register(store, second)
    account = await find(store)
    assert await redeem(store, people.trying(account, second.code_id)) is None
    assert await issue(store, people.resending(account)) is None
    assert await redeem(store, people.trying(account, second.code_id, hashed=b"$2b$12$second")) is not None


async def test_registering_again_needs_a_code_of_the_budget(store: Store, people: People) -> None:
    """A dead code's address without budget hears when it may come back, and keeps its password until then."""
    new = people.registering()
    await register(store, new)
    mail = new.mail_id
    for _ in range(4):
        await store.wait(60)
        code = people.resending(await find(store))
        await issue(store, code)
        mail = code.mail_id
    await store.mail_dead(mail)
    refusal = await refused(store, people.registering(hashed=b"$2b$12$other"))
    assert isinstance(refusal, CodesExhausted)
    assert refusal.retry_after == pytest.approx(3600 - 4 * 60, abs=2)
    assert (await find(store)).password_hash == new.password_hash
    await store.wait(refusal.retry_after)
    await register(store, people.registering())


async def test_registering_again_does_not_wait_for_the_cool_down(store: Store, people: People) -> None:
    """The cool-down is between resends; a mail that died at once can be registered again at once."""
    new = people.registering()
    await register(store, new)
    await store.mail_dead(new.mail_id)
    await register(store, people.registering())
