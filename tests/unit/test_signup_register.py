"""Registering: what is judged first, what is counted, what is given back, and what an idempotency key saves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.domain import errors
from actors.domain.mail import MailKind, MailState
from actors.domain.rate_limit import Rule
from actors.domain.user import LOOKS
from actors.kit.mailbox import AnswerLost, NotAccepted
from actors.ports import NewMail, StoreUnavailable
from actors.signup import Form, Registration
from tests.fakes.callers import callers, refused
from tests.fakes.flows import EMAIL, KEY, LIMITS, NO_LIMITS, PASSWORD, Flows, client

OTHER, BOB = "another horse", "bob@example.com"


@pytest.fixture
async def flows() -> AsyncIterator[Flows]:
    """Return flows that nobody has used."""
    async with Flows.running() as flows:
        yield flows


@pytest.fixture
async def unlimited() -> AsyncIterator[Flows]:
    """Return the same without limits."""
    async with Flows.running(NO_LIMITS) as flows:
        yield flows


async def test_a_registration_owes_a_mail_and_wakes_a_worker_for_it(flows: Flows) -> None:
    """The account is pending under the address' key, and the mail carries the trace of the request."""
    asker = client()
    asker.traceparent = "the trace"
    registration = await flows.register(by=asker)
    account = await flows.account()
    token = flows.keyring.status_token(account.id, account.registration)
    assert registration == Registration(account.id, EMAIL, account.created_at, token)
    assert (account.email, account.email_key, account.locale) == (EMAIL, KEY, "en")
    assert flows.accounts.mails == [NewMail(account.mails[0].id, MailKind.CODE, "k1", "the trace")]
    await wait_all_tasks_blocked()
    assert flows.wakeups.woken == [account.mails[0].id]
    assert await flows.hashing.check(PASSWORD.encode(), account.password_hash)


@pytest.mark.parametrize(
    ("email", "password", "refusal"),
    [
        ("no address", PASSWORD, errors.InvalidEmail),
        (EMAIL, "short", errors.WeakPassword),
        (EMAIL, "password", errors.WeakPassword),
    ],
)
async def test_what_is_invalid_costs_neither_a_hash_nor_a_registration(
    flows: Flows, email: str, password: str, refusal: type[Exception]
) -> None:
    """It is judged before any limit is used."""
    for _ in range(9):
        await refused(refusal, flows.register(email, password))
    assert flows.hashing.hashes == 0
    await flows.register()


async def test_a_client_has_five_registrations_an_hour(flows: Flows) -> None:
    """The sixth is refused before its hash; another client's is not; the readings say so, and waiting is enough."""
    for number in range(5):
        asker = client()
        await flows.register(f"user{number}@example.com", by=asker)
        assert {reading.rule.name: reading.remaining for reading in asker.readings} == {"register": 4 - number}
    full = await refused(errors.RateLimited, flows.register())
    assert flows.hashing.hashes == 5
    await flows.register(BOB, by=client("198.51.100.1"))
    flows.clock.advance(full.retry_after)
    await flows.register()


async def test_a_wider_network_counts_at_its_multiple(flows: Flows) -> None:
    """An IPv6 client counts by /64, and by /48 at four times the limit."""
    asker = client()
    for number in range(20):
        asker.networks = ((f"2001:db8:1:{number}::/64", 1), ("2001:db8:1::/48", 4))
        await flows.register(f"user{number}@example.com", by=asker)
    asker.networks = (("2001:db8:1:99::/64", 1), ("2001:db8:1::/48", 4))
    await refused(errors.RateLimited, flows.register(by=asker))


async def test_a_taken_address_uses_the_clients_registration_but_no_code(flows: Flows) -> None:
    """A 409 is counted, so that addresses cannot be tried for free; no code was issued, so none is counted."""
    await flows.register(by=client("198.51.100.1"))
    for _ in range(5):
        await refused(errors.EmailTaken, flows.register())
    await refused(errors.RateLimited, flows.register())
    assert flows.hashing.hashes == 1


async def test_a_client_has_three_codes_an_hour_for_one_address(flows: Flows) -> None:
    """A fourth would let one client use an address' codes up."""
    for _ in range(3):
        await flows.register()
        flows.accounts.mail_is(MailState.DEAD)
    await refused(errors.CodesExhausted, flows.register())
    await flows.register(by=client("198.51.100.1"))


async def test_an_address_without_codes_is_refused_and_nothing_used_up(flows: Flows) -> None:
    """As any 429: the wait is told, the client can still register other addresses, and no hash was made in vain."""
    for number in range(5):
        await flows.register(by=client(f"198.51.100.{number}"))
        flows.accounts.mail_is(MailState.DEAD)
    for _ in range(6):
        full = await refused(errors.CodesExhausted, flows.register())
    assert full.retry_after == pytest.approx(3600, abs=1)
    assert flows.hashing.hashes == 5
    await flows.register(BOB)


@pytest.mark.parametrize("error", [StoreUnavailable, AnswerLost])
async def test_what_the_machinery_could_not_do_is_given_back(flows: Flows, error: type[NotAccepted]) -> None:
    """A client whose registrations fail with 503 has them all left, and no hash is made that cannot be kept."""
    flows.accounts.away = error()
    for _ in range(9):
        await refused(error, flows.register())
        await wait_all_tasks_blocked()
    assert flows.hashing.hashes == 0
    flows.accounts.away = None
    await flows.register()


async def test_a_dead_registration_is_replaced_with_all_that_it_said(flows: Flows) -> None:
    """The new password, spelling and language are the account's; the first status address is not."""
    first = await flows.register()
    flows.accounts.mail_is(MailState.DEAD)
    second = await flows.signup.register(client(), Form(KEY, OTHER, "de", "k-1"))
    assert first is not None
    assert second is not None
    assert (first.id, first.status_token != second.status_token) == (second.id, True)
    account = await flows.account()
    assert (account.email, account.locale) == (KEY, "de")
    assert await flows.hashing.check(OTHER.encode(), account.password_hash)
    assert await flows.signup.register(client(), Form(KEY, OTHER, "de", "k-1")) == second


async def test_a_client_that_leaves_stops_nothing(flows: Flows, autojump_clock: MockClock) -> None:
    """The registration it began is finished; one that stays hears how it went."""
    flows.hashing.seconds = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flows.background.run, partial(flows.register))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert await flows.accounts.find([KEY]) == [None]
    await refused(errors.InvalidEmail, flows.background.run(partial(flows.register, "no address")))
    assert isinstance(await flows.background.run(partial(flows.register, BOB)), Registration)
    assert (await flows.account()).email == EMAIL


async def test_without_limits_nothing_is_counted(unlimited: Flows) -> None:
    """Everything `off`: no window is asked, and no reading is noted."""
    unlimited.rate_limits.away = StoreUnavailable()
    seen = client()
    for number in range(9):
        await unlimited.register(f"user{number}@example.com", by=seen)
    assert seen.readings == []


async def test_a_full_queue_of_hashes_is_refused_before_any_limit(flows: Flows, autojump_clock: MockClock) -> None:
    """NotAccepted at once, no window asked, and nothing used up."""
    flows.hashing.seconds = 2
    await flows.register(BOB)
    async with callers() as others:
        for number in range(4):
            others.call(partial(flows.register, f"user{number}@example.com", by=client(f"198.51.100.{number}")))
        await wait_all_tasks_blocked()
        asker = client()
        await refused(NotAccepted, flows.register(by=asker))
        assert asker.readings == []


async def test_a_client_that_was_refused_is_refused_again_without_a_question(
    flows: Flows, autojump_clock: MockClock
) -> None:
    """For a second, and counted like the first time: a crowd that is refused costs no store anything."""
    for number in range(5):
        await flows.register(f"user{number}@example.com")
    full = await refused(errors.RateLimited, flows.register())
    flows.rate_limits.away = StoreUnavailable()
    await trio.sleep(0.5)
    asker = client()
    with pytest.raises(errors.RateLimited) as again:
        flows.signup.expect_registration(asker)
    assert again.value.retry_after == pytest.approx(full.retry_after - 0.5)
    assert [(reading.rule.name, reading.remaining) for reading in asker.readings] == [("register", 0)]
    assert flows.counted["limits_refused|register"] == 2
    flows.signup.expect_registration(client("198.51.100.1"))
    await trio.sleep(0.6)
    flows.signup.expect_registration(client())


async def test_of_refused_clients_only_the_newest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowd from everywhere fills no memory: the one that was refused first is asked for again."""
    monkeypatch.setattr("actors.limits.MOST_REMEMBERED", 2)
    async with Flows.running(replace(LIMITS, register=Rule("register", 1, 3600))) as flows:
        crowd = [client(f"198.51.100.{number}") for number in range(3)]
        for number, one in enumerate(crowd):
            await flows.register(f"user{number}@example.com", by=one)
            await refused(errors.RateLimited, flows.register(by=one))
        flows.signup.expect_registration(crowd[0])
        for one in crowd[1:]:
            with pytest.raises(errors.RateLimited):
                flows.signup.expect_registration(one)


async def test_an_account_that_never_holds_still_is_given_up(flows: Flows) -> None:
    """After some looks the client may repeat, instead of waiting for ever."""
    await flows.register()
    flows.accounts.mail_is(MailState.DEAD)
    flows.accounts.changed = LOOKS
    await refused(NotAccepted, flows.register())
    flows.accounts.changed = LOOKS - 1
    await flows.register()
    assert flows.accounts.changed == 0


async def test_an_account_deleted_during_its_registration_may_be_registered_again(flows: Flows) -> None:
    """Lost to an account that is gone a moment later: nothing was done, and a repeat succeeds."""

    async def delete() -> None:
        flows.accounts.forget_account()

    await flows.register()
    flows.accounts.mail_is(MailState.DEAD)
    flows.accounts.after_add = delete
    await refused(NotAccepted, flows.register())
    flows.accounts.after_add = None
    await flows.register()


async def test_of_one_batch_one_registration_wins_each_address(unlimited: Flows) -> None:
    """Racing registrations of one worker reach the store once, and the others are refused."""
    async with callers() as racers:
        for number in range(8):
            racers.call(partial(unlimited.register, by=client(f"198.51.100.{number}")))
    assert racers.heard.count(errors.EmailTaken) == 7
    assert len(unlimited.accounts.mails) == 1


# -- idempotency keys


async def test_a_key_makes_the_repeat_free_and_the_same(flows: Flows) -> None:
    """Same key, same body: the same registration, no second hash, mail or use of a limit."""
    first = await flows.register(key="k-1")
    for _ in range(9):
        assert await flows.register(key="k-1") == first
    assert (flows.hashing.hashes, len(flows.accounts.mails)) == (1, 1)
    for number in range(4):
        await flows.register(f"user{number}@example.com")


async def test_a_key_with_another_body_is_refused(flows: Flows) -> None:
    """Another password, spelling or language is another body; another address is another key."""
    await flows.register(key="k-1")
    await refused(errors.IdempotencyKeyReused, flows.register(password=OTHER, key="k-1"))
    await refused(errors.IdempotencyKeyReused, flows.register(KEY, key="k-1"))
    german = Form(EMAIL, PASSWORD, "de", "k-1")
    await refused(errors.IdempotencyKeyReused, flows.signup.register(client(), german))
    await flows.register(BOB, key="k-1")


async def test_a_refused_request_binds_no_key(unlimited: Flows) -> None:
    """The key is free for the request that succeeds."""
    await unlimited.register()
    await refused(errors.EmailTaken, unlimited.register(key="k-1"))
    unlimited.accounts.mail_is(MailState.DEAD)
    await unlimited.register(password=OTHER, key="k-1")


@pytest.mark.parametrize("key", ["", "x" * 65, "with blank", "ümlaut", "tab\t"])
async def test_a_key_is_a_short_visible_token(flows: Flows, key: str) -> None:
    """1 to 64 visible ASCII characters."""
    await refused(errors.IdempotencyKeyInvalid, flows.register(key=key))
    await flows.register(key="~" * 64)


@pytest.mark.parametrize("limit", [5, 1])
async def test_repeats_at_once_get_the_first_ones_answer(autojump_clock: MockClock, limit: int) -> None:
    """All hash, one insert wins, the others find the key's answer and give their try back; so with the limit full."""
    async with Flows.running(replace(LIMITS, register=Rule("register", limit, 3600))) as flows:
        flows.hashing.seconds = 1
        async with callers() as repeats:
            for _ in range(3):
                repeats.call(partial(flows.register, key="k-1"))
        assert len(set(repeats.heard)) == 1
        assert isinstance(repeats.heard[0], Registration)
        flows.hashing.seconds = 0
        for number in range(limit - 1):
            await flows.register(f"user{number}@example.com")
        begun = trio.current_time()
        await refused(errors.RateLimited, flows.register(BOB, key="k-2"))
        assert 2.9 < trio.current_time() - begun < 3.3  # so long it waits for an answer
        assert len(flows.accounts.mails) == limit


async def test_a_repeat_that_cannot_look_again_is_refused_as_it_was(flows: Flows, autojump_clock: MockClock) -> None:
    """A store that goes away meanwhile changes nothing about the refusal."""
    flows.hashing.during = lambda: setattr(flows.accounts, "away", StoreUnavailable())
    await refused(StoreUnavailable, flows.register(key="k-1"))
    assert autojump_clock.current_time() < 1


async def test_a_lost_answer_is_found_again_by_its_key(flows: Flows) -> None:
    """The registration was stored and its answer lost: the key knows it, and the try is given back."""

    async def lose() -> None:
        raise AnswerLost

    flows.accounts.after_add = lose
    assert isinstance(await flows.register(key="k-1"), Registration)
    flows.accounts.after_add = None
    for number in range(5):
        await flows.register(f"user{number}@example.com")
