"""Registering: what is judged first, what is counted, what is given back, and what an idempotency key saves."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from actors.domain.errors import (
    CodesExhausted,
    EmailTaken,
    IdempotencyKeyInvalid,
    IdempotencyKeyReused,
    InvalidEmail,
    RateLimited,
    WeakPassword,
)
from actors.domain.mail import MailState
from actors.domain.rate_limit import Rule
from actors.domain.user import LOOKS
from actors.kit.mailbox import AnswerLost, NotAccepted
from actors.ports import StoreUnavailable
from tests.fakes.flows import EMAIL, KEY, LIMITS, NO_LIMITS, PASSWORD, Flows, client, form

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.ports import Register, Registered


async def test_a_registration_owes_a_mail_and_rings_for_it() -> None:
    """The account is pending under the address' key, and a worker is told."""
    async with Flows.running() as flows:
        registration = await flows.register()
    account = await flows.account()
    assert (account.email, account.email_key, account.id) == (EMAIL, KEY, registration.id)
    assert registration.created_at == account.created_at
    assert registration.email == EMAIL
    assert flows.keyring.read_status_token(registration.status_token) == (account.id, account.registration)
    assert flows.wakeups.woken == flows.accounts.mails
    assert await flows.hashing.check(PASSWORD.encode(), account.password_hash)


@pytest.mark.parametrize(
    ("email", "password", "refusal"),
    [("no address", PASSWORD, InvalidEmail), (EMAIL, "short", WeakPassword), (EMAIL, "password", WeakPassword)],
)
async def test_what_is_invalid_costs_neither_a_hash_nor_a_registration(
    email: str, password: str, refusal: type[Exception]
) -> None:
    """It is judged before any limit is used."""
    async with Flows.running() as flows:
        for _ in range(9):
            with pytest.raises(refusal):
                await flows.signup.register(client(), form(email, password))
        assert flows.hashing.hashes == 0
        await flows.signup.register(client(), form())


async def test_a_client_has_five_registrations_an_hour() -> None:
    """The sixth is refused before its hash; another client's is not; waiting as told is enough."""
    async with Flows.running() as flows:
        for number in range(5):
            await flows.signup.register(client(), form(f"user{number}@example.com"))
        with pytest.raises(RateLimited) as caught:
            await flows.signup.register(client(), form())
        assert flows.hashing.hashes == 5
        await flows.signup.register(client("198.51.100.1"), form("other@example.com"))
        flows.clock.advance(caught.value.retry_after)
        await flows.signup.register(client(), form())


async def test_a_taken_address_uses_the_clients_registration_but_no_code() -> None:
    """A 409 is counted, so that addresses cannot be tried for free; no code was issued, so none is counted."""
    async with Flows.running() as flows:
        await flows.signup.register(client("198.51.100.1"), form())
        for _ in range(5):
            with pytest.raises(EmailTaken):
                await flows.signup.register(client(), form())
        with pytest.raises(RateLimited):
            await flows.signup.register(client(), form())
        assert flows.hashing.hashes == 1


async def test_a_client_has_three_codes_an_hour_for_one_address() -> None:
    """A fourth would let one client use an address' codes up."""
    async with Flows.running() as flows:
        for _ in range(3):
            await flows.signup.register(client(), form())
            flows.mail_is(MailState.DEAD)
        with pytest.raises(CodesExhausted):
            await flows.signup.register(client(), form())
        await flows.signup.register(client("198.51.100.1"), form())


async def test_an_address_without_codes_is_refused() -> None:
    """The store's budget is told with its wait, and the client's code is given back."""
    async with Flows.running(NO_LIMITS) as flows:
        for _ in range(5):
            await flows.signup.register(client(), form())
            flows.mail_is(MailState.DEAD)
        with pytest.raises(CodesExhausted) as caught:
            await flows.signup.register(client(), form())
        assert caught.value.retry_after == pytest.approx(3600, abs=1)


async def test_a_refusal_for_want_of_codes_uses_nothing_up() -> None:
    """As any 429: the client can still register with other addresses, and no hash was made in vain."""
    async with Flows.running() as flows:
        for number in range(5):
            await flows.signup.register(client(f"198.51.100.{number}"), form())
            flows.mail_is(MailState.DEAD)
        for _ in range(6):
            with pytest.raises(CodesExhausted):
                await flows.signup.register(client(), form())
        assert flows.hashing.hashes == 5
        await flows.signup.register(client(), form("other@example.com"))


@pytest.mark.parametrize("error", [StoreUnavailable, AnswerLost])
async def test_what_the_machinery_could_not_do_is_given_back(error: type[NotAccepted | AnswerLost]) -> None:
    """A client whose registrations fail with 503 has them all left."""
    async with Flows.running() as flows:
        flows.accounts.away = error()
        for _ in range(9):
            with pytest.raises(error):
                await flows.signup.register(client(), form())
            await trio.testing.wait_all_tasks_blocked()
        flows.accounts.away = None
        await flows.signup.register(client(), form())
    assert flows.hashing.hashes == 1


async def test_a_store_that_is_away_is_noticed_before_the_hash() -> None:
    """Nobody waits for a quarter of a second of work that cannot be kept."""
    async with Flows.running() as flows:
        flows.accounts.away = StoreUnavailable()
        with pytest.raises(StoreUnavailable):
            await flows.signup.register(client(), form())
    assert flows.hashing.hashes == 0


async def test_readings_tell_what_the_limits_say() -> None:
    """The answer's headers get every window that was asked."""
    async with Flows.running() as flows:
        seen = client()
        await flows.signup.register(seen, form())
    assert {reading.rule.name: reading.remaining for reading in seen.readings} == {"register": 4}


async def test_a_wider_network_counts_at_its_multiple() -> None:
    """An IPv6 client counts by /64, and by /48 at four times the limit."""
    async with Flows.running() as flows:
        for number in range(20):
            asker = client()
            asker.networks = ((f"2001:db8:1:{number}::/64", 1), ("2001:db8:1::/48", 4))
            await flows.signup.register(asker, form(f"user{number}@example.com"))
        asker = client()
        asker.networks = (("2001:db8:1:99::/64", 1), ("2001:db8:1::/48", 4))
        with pytest.raises(RateLimited):
            await flows.signup.register(asker, form())


async def test_a_dead_registration_is_replaced_with_its_password() -> None:
    """The new password is the account's, and the first status address shows nothing more."""
    async with Flows.running() as flows:
        first = await flows.register()
        flows.mail_is(MailState.DEAD)
        second = await flows.register(sent=form(password="another horse"))
        assert (first.id, first.status_token != second.status_token) == (second.id, True)
        assert await flows.hashing.check(b"another horse", (await flows.account()).password_hash)


async def test_a_client_that_leaves_stops_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """The registration it began is finished."""
    async with Flows.running() as flows:
        flows.hashing.seconds = 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flows.background.run, partial(flows.signup.register, client(), form()))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await flows.accounts.find([KEY]) == [None]
        await trio.sleep(2)
        assert (await flows.account()).email == EMAIL
    assert autojump_clock.current_time() >= 2


async def test_a_key_makes_the_repeat_free_and_the_same() -> None:
    """Same key, same body: the same registration, no second hash, mail or use of a limit."""
    async with Flows.running() as flows:
        first = await flows.signup.register(client(), form(key="k-1"))
        for _ in range(9):
            assert await flows.signup.register(client(), form(key="k-1")) == first
        assert (flows.hashing.hashes, len(flows.accounts.mails)) == (1, 1)
        for number in range(4):
            await flows.signup.register(client(), form(f"user{number}@example.com"))


async def test_a_key_with_another_body_is_refused() -> None:
    """Another password or spelling is another body; another address is another key."""
    async with Flows.running() as flows:
        await flows.signup.register(client(), form(key="k-1"))
        for other in (form(password="another horse", key="k-1"), form(KEY, key="k-1")):
            with pytest.raises(IdempotencyKeyReused):
                await flows.signup.register(client(), other)
        await flows.signup.register(client(), form("bob@example.com", key="k-1"))


async def test_a_refused_request_binds_no_key() -> None:
    """The key is free for the request that succeeds."""
    async with Flows.running(NO_LIMITS) as flows:
        await flows.signup.register(client(), form())
        with pytest.raises(EmailTaken):
            await flows.signup.register(client(), form(key="k-1"))
        flows.mail_is(MailState.DEAD)
        await flows.signup.register(client(), form(password="another horse", key="k-1"))


async def test_without_limits_nothing_is_counted() -> None:
    """Everything `off`: no window is asked, and no reading is noted."""
    async with Flows.running(NO_LIMITS) as flows:
        flows.rate_limits.away = StoreUnavailable()
        seen = client()
        for number in range(9):
            await flows.signup.register(seen, form(f"user{number}@example.com"))
        assert seen.readings == []


@pytest.mark.parametrize("key", ["", "x" * 65, "with blank", "ümlaut", "tab\t"])
async def test_a_key_is_a_short_visible_token(key: str) -> None:
    """1 to 64 visible ASCII characters."""
    async with Flows.running() as flows:
        with pytest.raises(IdempotencyKeyInvalid):
            await flows.signup.register(client(), form(key=key))
        await flows.signup.register(client(), form(key="~" * 64))


async def test_repeats_at_once_get_the_first_ones_answer(autojump_clock: trio.testing.MockClock) -> None:
    """Both hash, one insert wins, the other finds the key's answer and gives its try back."""
    async with Flows.running() as flows:
        flows.hashing.seconds = 1
        answers: list[object] = []

        async def send() -> None:
            answers.append(await flows.signup.register(client(), form(key="k-1")))

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(send)
        assert answers[0] == answers[1] is not None
        assert len(flows.accounts.mails) == 1
        flows.hashing.seconds = 0
        for number in range(4):
            await flows.signup.register(client(), form(f"user{number}@example.com"))
    assert autojump_clock.current_time() >= 1


async def test_a_repeat_that_finds_the_limit_full_waits_for_the_answer(autojump_clock: trio.testing.MockClock) -> None:
    """Its own first copies may have filled the limit; without an answer in three seconds the limit is told."""
    async with Flows.running(replace(LIMITS, register=Rule("register", 1, 3600))) as flows:
        flows.hashing.seconds = 1
        answers: list[object] = []

        async def send() -> None:
            answers.append(await flows.signup.register(client(), form(key="k-1")))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(send)
        assert len(answers) == 3
        assert len(set(answers)) == 1
        begun = autojump_clock.current_time()
        with pytest.raises(RateLimited):
            await flows.signup.register(client(), form("bob@example.com", key="k-2"))
        assert 2.9 < autojump_clock.current_time() - begun < 3.3


async def test_a_repeat_that_cannot_look_again_is_refused_as_it_was(autojump_clock: trio.testing.MockClock) -> None:
    """A store that goes away meanwhile changes nothing about the refusal."""
    async with Flows.running() as flows:
        flows.hashing.during = lambda: setattr(flows.accounts, "away", StoreUnavailable())
        with pytest.raises(StoreUnavailable):
            await flows.signup.register(client(), form(key="k-1"))
    assert autojump_clock.current_time() < 1


async def test_a_lost_answer_is_found_again_by_its_key() -> None:
    """The registration was stored and its answer lost: the key knows it, and the try is given back."""
    async with Flows.running() as flows:
        first = await flows.signup.register(client(), form(key="k-1"))
        looks = flows.accounts.calls.count("find_answers")
        assert await flows.signup.register(client(), form(key="k-1")) == first
        assert flows.accounts.calls.count("find_answers") == looks + 1


async def test_a_full_queue_of_hashes_is_refused_before_any_limit(autojump_clock: trio.testing.MockClock) -> None:
    """NotAccepted at once, no window asked, and nothing used up."""
    async with Flows.running() as flows:
        flows.hashing.seconds = 2
        await flows.signup.register(client(), form("first@example.com"))

        async def register(number: int) -> None:
            await flows.signup.register(client(f"198.51.100.{number}"), form(f"user{number}@example.com"))

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(register, number)
            await trio.testing.wait_all_tasks_blocked()
            asker = client()
            with pytest.raises(NotAccepted):
                await flows.signup.register(asker, form())
            assert asker.readings == []
    assert autojump_clock.current_time() >= 2


async def test_an_account_that_never_holds_still_is_given_up() -> None:
    """After some looks the client may repeat, instead of waiting for ever."""
    async with Flows.running() as flows:
        await flows.signup.register(client(), form())
        flows.mail_is(MailState.DEAD)
        flows.accounts.changed = LOOKS
        with pytest.raises(NotAccepted):
            await flows.signup.register(client(), form())
        flows.accounts.changed = LOOKS - 1
        await flows.signup.register(client(), form())
        assert flows.accounts.changed == 0


async def test_an_account_deleted_during_its_registration_may_be_registered_again() -> None:
    """Lost to an account that is gone a moment later: nothing was done, and a repeat succeeds."""
    async with Flows.running() as flows:
        await flows.signup.register(client(), form())
        flows.mail_is(MailState.DEAD)
        original = flows.accounts.add

        async def add(accounts: Sequence[Register]) -> list[Registered | None]:
            added = await original(accounts)
            flows.accounts.forget_account()
            return added

        flows.accounts.add = add  # type: ignore[method-assign]  # the operator's hand, between two statements
        with pytest.raises(NotAccepted):
            await flows.signup.register(client(), form())
        flows.accounts.add = original  # type: ignore[method-assign]  # the fake is whole again
        await flows.signup.register(client(), form())


async def test_of_one_batch_one_registration_wins_each_address() -> None:
    """Racing registrations of one worker reach the store once, and the others are refused."""
    async with Flows.running(NO_LIMITS) as flows:
        outcomes: list[str] = []

        async def send(number: int) -> None:
            try:
                await flows.signup.register(client(f"198.51.100.{number}"), form())
                outcomes.append("registered")
            except EmailTaken:
                outcomes.append("taken")

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(send, number)
        assert sorted(outcomes) == ["registered"] + ["taken"] * 7
