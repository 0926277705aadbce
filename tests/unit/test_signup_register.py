"""Registering: what is judged first, what is counted, what is given back, and what an idempotency key saves."""

from __future__ import annotations

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
    RequestInProgress,
    WeakPassword,
)
from actors.kit.mailbox import AnswerLost, NotAccepted
from actors.ports import StoreUnavailable
from tests.fakes.flows import EMAIL, KEY, NO_LIMITS, PASSWORD, Flows, form, visit


async def test_a_registration_owes_a_mail_and_rings_for_it() -> None:
    """The account is pending under the address' key, and a worker is told."""
    async with Flows.running() as flows:
        registration = await flows.signup.register(visit(), form())
    account = await flows.account()
    assert (account.email, account.email_key, account.id) == (EMAIL, KEY, registration.id)
    assert registration.created_at == account.created_at
    assert registration.email == EMAIL
    assert flows.keyring.registration(registration.status_token) == account.registration
    assert flows.wakeups.rung == list(flows.accounts.mails)
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
                await flows.signup.register(visit(), form(email, password))
        assert flows.hashing.hashes == 0
        await flows.signup.register(visit(), form())


async def test_a_client_has_five_registrations_an_hour() -> None:
    """The sixth is refused before its hash; another client's is not; waiting as told is enough."""
    async with Flows.running() as flows:
        for number in range(5):
            await flows.signup.register(visit(), form(f"user{number}@example.com"))
        with pytest.raises(RateLimited) as caught:
            await flows.signup.register(visit(), form())
        assert flows.hashing.hashes == 5
        await flows.signup.register(visit("198.51.100.1"), form("other@example.com"))
        flows.clock.advance(caught.value.retry_after)
        await flows.signup.register(visit(), form())


async def test_a_taken_address_uses_the_clients_registration_but_no_code() -> None:
    """A 409 is counted, so that addresses cannot be tried for free; no code was issued, so none is counted."""
    async with Flows.running() as flows:
        await flows.signup.register(visit("198.51.100.1"), form())
        for _ in range(5):
            with pytest.raises(EmailTaken):
                await flows.signup.register(visit(), form())
        with pytest.raises(RateLimited):
            await flows.signup.register(visit(), form())
        assert flows.hashing.hashes == 1


async def test_a_client_has_three_codes_an_hour_for_one_address() -> None:
    """A fourth would let one client use an address' codes up."""
    async with Flows.running() as flows:
        for _ in range(3):
            await flows.signup.register(visit(), form())
            flows.accounts.mail_dead(await flows.mail())
        with pytest.raises(CodesExhausted):
            await flows.signup.register(visit(), form())
        await flows.signup.register(visit("198.51.100.1"), form())


async def test_an_address_without_codes_is_refused() -> None:
    """The store's budget is told with its wait, and the client's code is given back."""
    async with Flows.running(NO_LIMITS) as flows:
        for _ in range(5):
            await flows.signup.register(visit(), form())
            flows.accounts.mail_dead(await flows.mail())
        with pytest.raises(CodesExhausted) as caught:
            await flows.signup.register(visit(), form())
        assert caught.value.retry_after == pytest.approx(3600, abs=1)


async def test_a_refusal_for_want_of_codes_uses_nothing_up() -> None:
    """As any 429: the client can still register with other addresses, and no hash was made in vain."""
    async with Flows.running() as flows:
        for number in range(5):
            await flows.signup.register(visit(f"198.51.100.{number}"), form())
            flows.accounts.mail_dead(await flows.mail())
        for _ in range(6):
            with pytest.raises(CodesExhausted):
                await flows.signup.register(visit(), form())
        assert flows.hashing.hashes == 5
        await flows.signup.register(visit(), form("other@example.com"))


@pytest.mark.parametrize("error", [StoreUnavailable, AnswerLost])
async def test_what_the_machinery_could_not_do_is_given_back(error: type[NotAccepted | AnswerLost]) -> None:
    """A client whose registrations fail with 503 has them all left."""
    async with Flows.running() as flows:
        flows.accounts.away = error()
        for _ in range(9):
            with pytest.raises(error):
                await flows.signup.register(visit(), form())
            await trio.testing.wait_all_tasks_blocked()
        flows.accounts.away = None
        await flows.signup.register(visit(), form())
    assert flows.hashing.hashes == 1


async def test_a_store_that_is_away_is_noticed_before_the_hash() -> None:
    """Nobody waits for a quarter of a second of work that cannot be kept."""
    async with Flows.running() as flows:
        flows.accounts.away = StoreUnavailable()
        with pytest.raises(StoreUnavailable):
            await flows.signup.register(visit(), form())
    assert flows.hashing.hashes == 0


async def test_readings_tell_what_the_limits_say() -> None:
    """The answer's headers get every window that was asked."""
    async with Flows.running() as flows:
        seen = visit()
        await flows.signup.register(seen, form())
    assert {reading.rule.name: reading.remaining for reading in seen.readings} == {"register": 4}


async def test_a_wider_network_counts_at_its_multiple() -> None:
    """An IPv6 client counts by /64, and by /48 at four times the limit."""
    async with Flows.running() as flows:
        for number in range(20):
            client = visit()
            client.networks = ((f"2001:db8:1:{number}::/64", 1), ("2001:db8:1::/48", 4))
            await flows.signup.register(client, form(f"user{number}@example.com"))
        client = visit()
        client.networks = (("2001:db8:1:99::/64", 1), ("2001:db8:1::/48", 4))
        with pytest.raises(RateLimited):
            await flows.signup.register(client, form())


async def test_a_dead_registration_is_replaced_with_its_password() -> None:
    """The new password is the account's, and the first status address shows nothing more."""
    async with Flows.running() as flows:
        first = await flows.signup.register(visit(), form())
        flows.accounts.mail_dead(await flows.mail())
        second = await flows.signup.register(visit(), form(password="another horse"))
        assert (first.id, first.status_token != second.status_token) == (second.id, True)
        assert await flows.hashing.check(b"another horse", (await flows.account()).password_hash)


async def test_refused_requests_have_a_window_of_their_own() -> None:
    """Sixty a minute, then the client is turned away before its next one is read."""
    async with Flows.running() as flows:
        for _ in range(60):
            seen = visit()
            await flows.signup.welcome(seen)
            await flows.signup.refused(seen)
        assert (seen.readings[0].remaining, seen.readings[-1].remaining) == (1, 0)
        with pytest.raises(RateLimited) as caught:
            await flows.signup.welcome(visit())
        with pytest.raises(RateLimited):
            await flows.signup.refused(visit())
        flows.clock.advance(caught.value.retry_after)
        await flows.signup.welcome(visit())


async def test_a_client_that_goes_on_without_registrations_hears_when_it_has_one() -> None:
    """Sixty refusals later it is turned away before it is read, and the wait that it hears is still enough."""
    async with Flows.running() as flows:
        for number in range(5):
            await flows.signup.register(visit(), form(f"user{number}@example.com"))
        for _ in range(60):
            await flows.signup.refused(visit())
        with pytest.raises(RateLimited) as caught:
            await flows.signup.welcome(visit())
        flows.clock.advance(caught.value.retry_after)
        await flows.signup.welcome(visit())
        await flows.signup.register(visit(), form())


async def test_a_client_that_leaves_stops_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """The registration it began is finished."""
    async with Flows.running() as flows:
        flows.hashing.seconds = 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flows.signup.register, visit(), form())
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await flows.accounts.find([KEY]) == [None]
        await trio.sleep(2)
        assert (await flows.account()).email == EMAIL
    assert autojump_clock.current_time() >= 2


async def test_a_key_makes_the_repeat_free_and_the_same() -> None:
    """Same key, same body: the same registration, no second hash, mail or use of a limit."""
    async with Flows.running() as flows:
        first = await flows.signup.register(visit(), form(key="k-1"))
        for _ in range(9):
            assert await flows.signup.register(visit(), form(key="k-1")) == first
        assert (flows.hashing.hashes, len(flows.accounts.mails)) == (1, 1)
        for number in range(4):
            await flows.signup.register(visit(), form(f"user{number}@example.com"))


async def test_a_key_with_another_body_is_refused() -> None:
    """Another password or spelling is another body; another address is another key."""
    async with Flows.running() as flows:
        await flows.signup.register(visit(), form(key="k-1"))
        for other in (form(password="another horse", key="k-1"), form(KEY, key="k-1")):
            with pytest.raises(IdempotencyKeyReused):
                await flows.signup.register(visit(), other)
        await flows.signup.register(visit(), form("bob@example.com", key="k-1"))


async def test_a_refused_request_binds_no_key() -> None:
    """The key is free for the request that succeeds."""
    async with Flows.running(NO_LIMITS) as flows:
        await flows.signup.register(visit(), form())
        with pytest.raises(EmailTaken):
            await flows.signup.register(visit(), form(key="k-1"))
        flows.accounts.mail_dead(await flows.mail())
        await flows.signup.register(visit(), form(password="another horse", key="k-1"))


async def test_a_key_that_could_not_be_given_back_ends_by_itself() -> None:
    """The refusal is heard all the same, and the claim's end frees the key."""
    async with Flows.running(NO_LIMITS) as flows:
        await flows.signup.register(visit(), form())
        flows.keys.deaf = StoreUnavailable()
        with pytest.raises(EmailTaken):
            await flows.signup.register(visit(), form(key="k-1"))
        flows.accounts.mail_dead(await flows.mail())
        flows.clock.advance(15)
        await flows.signup.register(visit(), form(key="k-1"))


async def test_without_limits_nothing_is_counted() -> None:
    """Everything `off`: no window is asked, and no reading is noted."""
    async with Flows.running(NO_LIMITS) as flows:
        flows.windows.away = StoreUnavailable()
        seen = visit()
        for number in range(9):
            await flows.signup.welcome(seen)
            await flows.signup.refused(seen)
            await flows.signup.register(seen, form(f"user{number}@example.com"))
        assert seen.readings == []


async def test_a_key_whose_outcome_is_unknown_stays_taken(autojump_clock: trio.testing.MockClock) -> None:
    """After a lost answer the repeat waits for it, and then hears that the first one still runs."""
    async with Flows.running(NO_LIMITS) as flows:
        flows.accounts.away = AnswerLost()
        with pytest.raises(AnswerLost):
            await flows.signup.register(visit(), form(key="k-1"))
        flows.accounts.away = None
        begun = autojump_clock.current_time()
        with pytest.raises(RequestInProgress):
            await flows.signup.register(visit(), form(key="k-1"))
        assert 4.9 < autojump_clock.current_time() - begun < 5.2


async def test_a_repeat_waits_for_the_first(autojump_clock: trio.testing.MockClock) -> None:
    """Two requests with one key at once end with one registration, which both hear of."""
    async with Flows.running() as flows:
        flows.hashing.seconds = 1
        heard: list[object] = []

        async def send() -> None:
            heard.append(await flows.signup.register(visit(), form(key="k-1")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(send)
        assert heard[0] == heard[1]
        assert flows.hashing.hashes == 1
        assert autojump_clock.current_time() >= 1


async def test_a_repeat_that_waits_keeps_no_place(autojump_clock: trio.testing.MockClock) -> None:
    """Repeats of a registration that runs must not keep others from a hash that they do not need themselves."""
    async with Flows.running() as flows:
        flows.hashing.seconds = 1
        visits = [visit(), visit()]
        for one in visits:
            one.place = flows.signup.place()
        async with trio.open_nursery() as nursery:
            for one in visits:
                nursery.start_soon(flows.signup.register, one, form(key="k-1"))
            await trio.sleep(0.5)
            assert not flows.access.coming
        assert autojump_clock.current_time() >= 1


@pytest.mark.parametrize("key", ["", "x" * 65, "with blank", "ümlaut", "tab\t"])
async def test_a_key_is_a_short_visible_token(key: str) -> None:
    """1 to 64 visible ASCII characters."""
    async with Flows.running() as flows:
        with pytest.raises(IdempotencyKeyInvalid):
            await flows.signup.register(visit(), form(key=key))
        await flows.signup.register(visit(), form(key="~" * 64))
