"""What the store of accounts promises about codes, in memory as in Postgres."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from actors.domain.user import State
from actors.ports import Missed, Redeemed, Resent
from tests.contracts.steps import ATTEMPTS, find, issue, miss, redeem, register

if TYPE_CHECKING:
    from tests.contracts.conftest import People, Store


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
    assert isinstance(outcome, Resent)
    assert outcome == Resent(code.mail_id, outcome.resend_in, 8)
    assert outcome.resend_in == pytest.approx(30, abs=1.5)
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
