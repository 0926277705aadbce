"""What the store of accounts promises, in memory as in Postgres."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest

from actors.domain.errors import CodesExhausted, EmailTaken
from actors.domain.user import Account, CodeMail, State
from actors.ports import Missed, Redeemed, Registered, Resent

if TYPE_CHECKING:
    from actors.domain.errors import Refusal
    from actors.ports import NewAccount, NewCode, Redemption
    from tests.contracts.conftest import People, Store

ATTEMPTS = 5


async def register(store: Store, new: NewAccount) -> Registered:
    """Register and expect that it stands."""
    (outcome,) = await store.accounts.register([new])
    assert isinstance(outcome, Registered)
    return outcome


async def refused(store: Store, new: NewAccount) -> Refusal:
    """Register and expect a refusal."""
    (outcome,) = await store.accounts.register([new])
    assert not isinstance(outcome, Registered)
    return outcome


async def find(store: Store, key: str = "ada@example.com") -> Account:
    """Look up an account that must be there."""
    (account,) = await store.accounts.find([key])
    assert account is not None
    return account


async def redeem(store: Store, one: Redemption) -> Redeemed | Missed | None:
    """Try once."""
    (outcome,) = await store.codes.redeem([one])
    return outcome


async def issue(store: Store, code: NewCode) -> Resent | None:
    """Ask for a code."""
    (outcome,) = await store.codes.issue([code])
    return outcome


async def miss(store: Store, people: People, times: int) -> list[Redeemed | Missed | None]:
    """Type so many wrong codes, looking the account up before each."""
    return [await redeem(store, people.trying(await find(store), None)) for _ in range(times)]


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
    assert added == Registered(other.id, other.registration, added.created_at, other.mail_id)  # type: ignore[union-attr]


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


async def test_a_code_is_valid_before_its_mail_is_accepted(store: Store, people: People) -> None:
    """The mail may arrive before its acceptance is written."""
    new = people.registering()
    await register(store, new)
    await store.mail_taken(new.mail_id)
    account = await find(store)
    assert account.state(ATTEMPTS) is State.SENDING
    outcome = await redeem(store, people.trying(account, new.code_id))
    assert isinstance(outcome, Redeemed)
    activated = await find(store)
    assert activated.activated_at == outcome.activated_at
    assert activated.state(ATTEMPTS) is State.ACTIVATED


async def test_a_codes_minute_starts_when_its_mail_is_accepted(store: Store, people: People) -> None:
    """However long the mail was owed, the code lives 60 seconds from its acceptance."""
    new = people.registering()
    await register(store, new)
    await store.wait(300)
    await store.mail_accepted(new.mail_id)
    account = await find(store)
    assert account.state(ATTEMPTS) is State.ACCEPTED
    assert account.code_expires_in() == pytest.approx(60, abs=1.5)
    await store.wait(58)
    assert (await find(store)).live_codes(ATTEMPTS)
    await store.wait(2)
    assert (await find(store)).state(ATTEMPTS) is State.EXPIRED
    assert await redeem(store, people.trying(account, new.code_id)) is None


async def test_a_code_dies_at_its_hard_cap(store: Store, people: People) -> None:
    """No acceptance makes a code live longer than its greatest age."""
    new = people.registering()
    await register(store, new)
    await store.wait(870)
    await store.mail_accepted(new.mail_id)
    assert (await find(store)).code_expires_in() == pytest.approx(30, abs=1.5)


async def test_a_code_is_redeemed_once(store: Store, people: People) -> None:
    """The second redeemer hears nothing but that the account has changed; a repeat of the first hears the same."""
    new = people.registering()
    await register(store, new)
    account = await find(store)
    first = people.trying(account, new.code_id)
    outcome = await redeem(store, first)
    assert isinstance(outcome, Redeemed)
    assert await redeem(store, people.trying(account, new.code_id)) is None
    assert await redeem(store, first) == outcome


async def test_every_wrong_code_counts_and_the_last_one_kills(store: Store, people: People) -> None:
    """Attempts are counted in the store; after the fifth the right code is as good as none."""
    new = people.registering()
    await register(store, new)
    before = await find(store)
    outcomes = await miss(store, people, ATTEMPTS)
    assert outcomes == [Missed(left) for left in (4, 3, 2, 1, 0)]
    assert (await find(store)).state(ATTEMPTS) is State.EXHAUSTED
    assert await redeem(store, people.trying(before, None)) is None
    assert await redeem(store, people.trying(before, new.code_id)) is None


async def test_a_code_that_was_not_live_at_the_look_up_is_not_charged(store: Store, people: People) -> None:
    """A miss counts only when every live code was compared: a code issued in between sends the caller back."""
    new = people.registering()
    await register(store, new)
    before = await find(store)
    await store.wait(31)
    await issue(store, people.resending(before))
    assert await redeem(store, people.trying(before, None)) is None
    assert (await find(store)).code.attempts == 0


async def test_a_resend_keeps_the_old_code_alive_until_its_mail_is_accepted(store: Store, people: People) -> None:
    """Two codes are live while the newer mail travels; then the older one is superseded."""
    new = people.registering()
    await register(store, new)
    await store.mail_accepted(new.mail_id)
    await store.wait(31)
    code = people.resending(await find(store))
    outcome = await issue(store, code)
    assert outcome == Resent(code.mail_id, pytest.approx(30, abs=1.5), 8)  # type: ignore[arg-type]
    account = await find(store)
    assert [live.id for live in account.live_codes(ATTEMPTS)] == [code.code_id, new.code_id]
    assert (account.state(ATTEMPTS), account.accepted_at, account.superseded) == (State.QUEUED, None, ())
    await store.mail_accepted(code.mail_id)
    account = await find(store)
    assert [live.id for live in account.live_codes(ATTEMPTS)] == [code.code_id]
    assert account.superseded == (new.code_id,)
    assert await redeem(store, people.trying(account, new.code_id)) is None


async def test_the_old_code_activates_while_the_newer_mail_is_owed(store: Store, people: People) -> None:
    """A person who asked for another code and then found the first one is not sent away."""
    new = people.registering()
    await register(store, new)
    await store.wait(31)
    await issue(store, people.resending(await find(store)))
    assert isinstance(await redeem(store, people.trying(await find(store), new.code_id)), Redeemed)


async def test_a_miss_counts_on_every_live_code(store: Store, people: People) -> None:
    """A resend gives no guesses away: the older code has been charged for its own too."""
    new = people.registering()
    await register(store, new)
    assert await miss(store, people, 3) == [Missed(4), Missed(3), Missed(2)]
    await store.wait(31)
    await issue(store, people.resending(await find(store)))
    assert await miss(store, people, 2) == [Missed(4), Missed(3)]
    account = await find(store)
    assert account.old_code is not None
    assert (account.code.attempts, account.old_code.attempts) == (2, 5)
    assert await redeem(store, people.trying(replace(account, old_code=None), new.code_id)) is None


async def test_a_code_whose_mail_never_left_gives_way_to_the_next(store: Store, people: People) -> None:
    """Of two resends without an acceptance the first is superseded, and the code that may have arrived stays."""
    new = people.registering()
    await register(store, new)
    await store.mail_accepted(new.mail_id)
    await store.wait(31)
    second = people.resending(await find(store))
    await issue(store, second)
    await store.wait(20)
    assert await issue(store, people.resending(await find(store))) is None
    await store.wait(11)
    third = people.resending(await find(store))
    await issue(store, third)
    account = await find(store)
    assert account.old_code is not None
    assert (account.code.id, account.old_code.id) == (third.code_id, new.code_id)
    assert account.superseded == (second.code_id,)


async def test_a_resend_repeated_changes_nothing(store: Store, people: People) -> None:
    """The same code id twice has the same outcome and uses one of the budget."""
    await register(store, people.registering())
    await store.wait(31)
    code = people.resending(await find(store))
    first, second = await issue(store, code), await issue(store, code)
    assert first is not None
    assert second is not None
    assert (first.mail_id, first.codes_left_today) == (second.mail_id, second.codes_left_today)
    assert (await find(store)).codes_left_today == 8


async def test_resends_keep_their_distance(store: Store, people: People) -> None:
    """Less than the cool-down after the last code there is none."""
    await register(store, people.registering())
    await store.wait(28)
    assert await issue(store, people.resending(await find(store))) is None
    await store.wait(2)
    assert await issue(store, people.resending(await find(store))) is not None


async def test_an_address_has_five_codes_an_hour(store: Store, people: People) -> None:
    """Registration and resends share one budget, which heals as its oldest code leaves the hour."""
    await register(store, people.registering())
    for _ in range(4):
        await store.wait(60)
        assert await issue(store, people.resending(await find(store))) is not None
    await store.wait(60)
    account = await find(store)
    assert await issue(store, people.resending(account)) is None
    assert account.resend_in() == pytest.approx(3300, abs=2)
    await store.wait(3300)
    assert await issue(store, people.resending(await find(store))) is not None


async def test_an_address_has_ten_codes_a_day(store: Store, people: People) -> None:
    """The day's budget stands when the hour's has healed."""
    await register(store, people.registering())
    for left in range(8, -1, -1):
        await store.wait(3600)
        outcome = await issue(store, people.resending(await find(store)))
        assert outcome is not None
        assert outcome.codes_left_today == left
    await store.wait(3600)
    account = await find(store)
    assert await issue(store, people.resending(account)) is None
    assert account.resend_in() == pytest.approx(86400 - 10 * 3600, abs=2)


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


async def test_an_active_account_gets_no_code(store: Store, people: People) -> None:
    """There is nothing left to prove."""
    new = people.registering()
    await register(store, new)
    await redeem(store, people.trying(await find(store), new.code_id))
    await store.wait(31)
    assert await issue(store, people.resending(await find(store))) is None


async def test_an_unknown_account_is_neither_redeemed_nor_issued(store: Store, people: People) -> None:
    """An account that was deleted in between is one that has changed."""
    await register(store, people.registering())
    account = replace(await find(store), id=UUID(int=1))
    assert await redeem(store, people.trying(account, account.code.id)) is None
    assert await issue(store, people.resending(account)) is None


async def test_superseded_codes_are_remembered_for_a_day_of_them(store: Store, people: People) -> None:
    """Sixteen dead codes can be told from wrong ones; that is more than a day's budget."""
    dead: list[object] = []
    for _ in range(18):
        new = people.registering()
        await register(store, new)
        await store.mail_dead(new.mail_id)
        dead.append(new.code_id)
        await store.wait(90000)
    account = await find(store)
    assert list(account.superseded) == dead[1:-1]
