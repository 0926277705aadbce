"""Strict mode: nothing that a stranger can do tells a taken address from a free one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from actors.domain.errors import ActivationFailed, CodesExhausted, IdempotencyKeyReused, InvalidCredentials, RateLimited
from actors.domain.mail import MailState
from actors.ports import StoreUnavailable
from actors.signup import UNIFORM_SECONDS
from tests.fakes.flows import LIMITS, NO_LIMITS, PASSWORD, Flows, client, credentials, form

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

TAKEN, FREE = "Ada@Example.com", "bob@example.com"


@pytest.fixture
async def flows() -> AsyncIterator[Flows]:
    """Return strict flows in which Ada is pending."""
    async with Flows.running(strict=True) as flows:
        await flows.signup.register(client("198.51.100.1"), form())
        yield flows


@pytest.fixture
async def active(flows: Flows) -> Flows:
    """Return strict flows in which Ada is active."""
    await flows.signup.activate(client("198.51.100.1"), credentials(), await flows.code())
    return flows


@pytest.mark.parametrize("state", [MailState.QUEUED, MailState.ACCEPTED, MailState.DEAD, None])
async def test_register_answers_alike_whatever_the_address_is(
    autojump_clock: MockClock, flows: Flows, state: MailState | None
) -> None:
    """Pending, accepted, dead, active or free: the same answer, after one hash, at the same step of time."""
    if state is None:
        await flows.signup.activate(client("198.51.100.1"), credentials(), await flows.code())
    else:
        flows.mail_is(state)
    flows.hashing.seconds = 0.25
    took = []
    for email in (TAKEN, FREE):
        begun, hashes = trio.current_time(), flows.hashing.hashes
        assert await flows.signup.register(client(), form(email)) is None
        took.append(trio.current_time() - begun)
        assert flows.hashing.hashes == hashes + 1
    assert took == pytest.approx([0.25 + UNIFORM_SECONDS] * 2)


async def test_late_work_answers_at_the_next_step(autojump_clock: MockClock, flows: Flows) -> None:
    """An answer that is not ready leaves at the next step of the grid, never in between."""
    original = flows.accounts.add

    async def slow(accounts: object) -> object:
        await trio.sleep(1.5 * UNIFORM_SECONDS)
        return await original(accounts)  # type: ignore[arg-type]  # only handed on

    flows.accounts.add = slow  # type: ignore[assignment,method-assign]  # a slow database
    begun = trio.current_time()
    await flows.signup.register(client(), form(FREE))
    assert trio.current_time() - begun == pytest.approx(2 * UNIFORM_SECONDS)


async def test_the_owner_of_an_active_address_gets_one_notice_a_day(autojump_clock: MockClock, active: Flows) -> None:
    """A mail of its own kind, no code, and the account stays as it is."""
    before = await active.account()
    for _ in range(3):
        assert await active.signup.register(client(), form(password="another horse")) is None
    assert len(active.accounts.notices) == 1
    after = await active.account()
    assert (after.password_hash, after.mails) == (before.password_hash, before.mails)
    assert active.accounts.notices[0] in active.wakeups.woken


async def test_a_pending_address_that_is_held_gets_no_mail(autojump_clock: MockClock, flows: Flows) -> None:
    """Its own code is on the way."""
    await flows.signup.register(client(), form(password="another horse"))
    assert (len(flows.accounts.mails), flows.accounts.notices) == (1, [])
    assert await flows.hashing.check(PASSWORD.encode(), (await flows.account()).password_hash)


async def test_an_address_without_codes_gets_the_same_answer_and_no_mail(autojump_clock: MockClock) -> None:
    """The budget per address does not show."""
    async with Flows.running(NO_LIMITS, strict=True) as flows:
        for _ in range(7):
            assert await flows.signup.register(client(), form()) is None
            flows.mail_is(MailState.DEAD)
        assert len(flows.accounts.mails) == 5
    assert autojump_clock.current_time() == pytest.approx(7 * UNIFORM_SECONDS)


@pytest.mark.parametrize("email", [TAKEN, FREE])
async def test_the_clients_codes_of_an_address_show_for_both(
    autojump_clock: MockClock, flows: Flows, email: str
) -> None:
    """Three an hour for a client and an address, taken or free, dead or alive."""
    for _ in range(3):
        assert await flows.signup.register(client(), form(email)) is None
    with pytest.raises(CodesExhausted):
        await flows.signup.register(client(), form(email))


@pytest.mark.parametrize("email", [TAKEN, FREE])
async def test_a_key_is_bound_for_a_taken_address_too(autojump_clock: MockClock, flows: Flows, email: str) -> None:
    """A repeat costs no hash, another body is refused."""
    assert await flows.signup.register(client(), form(email, key="k-1")) is None
    hashes = flows.hashing.hashes
    assert await flows.signup.register(client(), form(email, key="k-1")) is None
    assert flows.hashing.hashes == hashes
    with pytest.raises(IdempotencyKeyReused):
        await flows.signup.register(client(), form(email, "another horse", key="k-1"))


async def test_of_one_batch_all_get_the_same_answer(autojump_clock: MockClock) -> None:
    """Racing registrations of one address differ in nothing."""
    async with Flows.running(NO_LIMITS, strict=True) as flows:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(flows.signup.register, client(f"198.51.100.{number}"), form(key=f"k-{number}"))
        assert len(flows.accounts.mails) == 1
    assert autojump_clock.current_time() == pytest.approx(UNIFORM_SECONDS)


async def test_every_failed_activation_is_the_same(autojump_clock: MockClock) -> None:
    """Unknown, wrong password, wrong, expired and exhausted codes, already active: one refusal at one time."""
    unlimited = replace(LIMITS, password=None, password_client=None)
    async with Flows.running(unlimited, strict=True) as flows:
        await flows.signup.register(client(), form())
        right, wrong = await flows.code(), await flows.wrong_code()

        async def fail(code: str, password: str = PASSWORD, email: str = TAKEN) -> None:
            begun = trio.current_time()
            with pytest.raises(ActivationFailed) as caught:
                await flows.signup.activate(client(), credentials(password, email), code)
            assert caught.value.__cause__ is None
            assert trio.current_time() - begun == pytest.approx(UNIFORM_SECONDS)

        await fail(right, email=FREE)
        await fail(right, "another horse")
        await fail(wrong)
        for _ in range(5):
            await fail(wrong)
        await fail(right)
        flows.mail_is(MailState.DEAD)
        await flows.signup.register(client(), form())
        flows.mail_is(MailState.ACCEPTED)
        flows.clock.advance(60)
        await fail(await flows.code())
        flows.mail_is(MailState.DEAD)
        await flows.signup.register(client(), form())
        await flows.signup.activate(client(), credentials(), await flows.code())
        await fail(await flows.code())


@pytest.mark.parametrize("email", [TAKEN, FREE])
async def test_failed_activations_are_counted_alike(autojump_clock: MockClock, flows: Flows, email: str) -> None:
    """Three a minute for a client and an address, whatever was wrong; the limit says so for both."""
    for _ in range(3):
        with pytest.raises(ActivationFailed):
            await flows.signup.activate(client(), credentials(email=email), "000000")
    with pytest.raises(RateLimited):
        await flows.signup.activate(client(), credentials(email=email), "000000")


@pytest.mark.parametrize(("email", "password"), [(TAKEN, PASSWORD), (TAKEN, "another horse"), (FREE, PASSWORD)])
async def test_resend_always_answers_the_same(
    autojump_clock: MockClock, flows: Flows, email: str, password: str
) -> None:
    """A mail goes only to a pending account whose password was right; every call counts."""
    flows.clock.advance(30)
    for _ in range(3):
        begun = trio.current_time()
        assert await flows.signup.resend(client(), credentials(password, email)) is None
        assert trio.current_time() - begun == pytest.approx(UNIFORM_SECONDS)
    assert len(flows.accounts.mails) == (2 if (email, password) == (TAKEN, PASSWORD) else 1)
    with pytest.raises(RateLimited):
        await flows.signup.resend(client(), credentials(password, email))


@pytest.mark.parametrize("flow", ["progress", "profile"])
@pytest.mark.parametrize("email", [TAKEN, FREE])
async def test_a_pending_account_looks_like_an_unknown_one(
    autojump_clock: MockClock, flows: Flows, flow: str, email: str
) -> None:
    """401 at the same time, and counted."""
    for _ in range(3):
        begun = trio.current_time()
        with pytest.raises(InvalidCredentials):
            await getattr(flows.signup, flow)(client(), credentials(email=email))
        assert trio.current_time() - begun == pytest.approx(UNIFORM_SECONDS)
    with pytest.raises(RateLimited):
        await getattr(flows.signup, flow)(client(), credentials(email=email))


async def test_an_active_account_is_shown_to_its_owner_within_the_limit_of_calls(
    autojump_clock: MockClock, active: Flows
) -> None:
    """A success counts as no guess; twenty a minute."""
    for _ in range(10):
        assert (await active.signup.profile(client(), credentials())).is_activated
        assert (await active.signup.progress(client(), credentials())).email == TAKEN
    with pytest.raises(RateLimited):
        await active.signup.profile(client(), credentials())


async def test_a_store_that_is_away_says_so(autojump_clock: MockClock, flows: Flows) -> None:
    """An outage is no secret, and is the same for everybody."""
    flows.accounts.away = StoreUnavailable()
    for email in (TAKEN, FREE):
        with pytest.raises(StoreUnavailable):
            await flows.signup.register(client(), form(email))
