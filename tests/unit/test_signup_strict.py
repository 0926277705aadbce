"""Strict mode: nothing that a stranger can do tells a taken address from a free one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import trio

from actors.domain import errors
from actors.domain.mail import MailKind, MailState
from actors.ports import StoreUnavailable
from actors.signup import UNIFORM_SECONDS
from tests.fakes.callers import callers, refused
from tests.fakes.flows import LIMITS, NO_LIMITS, PASSWORD, Flows, client

TAKEN, FREE, OTHER = "Ada@Example.com", "bob@example.com", "another horse"


@pytest.fixture
async def flows() -> AsyncIterator[Flows]:
    """Return strict flows in which Ada is pending."""
    async with Flows.running(strict=True) as flows:
        await flows.register(by=client("198.51.100.1"))
        yield flows


@pytest.fixture
async def active(flows: Flows) -> Flows:
    """Return strict flows in which Ada is active."""
    await flows.call("activate", await flows.code(), by=client("198.51.100.1"))
    return flows


@contextmanager
def taking(seconds: float) -> Iterator[None]:
    """Hold the body to the time that it takes."""
    begun = trio.current_time()
    yield
    assert trio.current_time() - begun == pytest.approx(seconds)


@pytest.mark.parametrize("state", [MailState.QUEUED, MailState.ACCEPTED, MailState.DEAD, None])
async def test_register_answers_alike_whatever_the_address_is(
    autojump_clock: object, flows: Flows, state: MailState | None
) -> None:
    """Pending, accepted, dead, active or free: the same answer, after one hash, at the same step of time."""
    if state is None:
        await flows.call("activate", await flows.code(), by=client("198.51.100.1"))
    else:
        flows.accounts.mail_is(state)
    flows.hashing.seconds = 0.25
    for email in (TAKEN, FREE):
        hashes = flows.hashing.hashes
        with taking(0.25 + UNIFORM_SECONDS):
            assert await flows.register(email) is None
        assert flows.hashing.hashes == hashes + 1


async def test_late_work_answers_at_the_next_step(autojump_clock: object, flows: Flows) -> None:
    """An answer that is not ready leaves at the next step of the grid, never in between."""
    flows.accounts.after_add = partial(trio.sleep, 1.5 * UNIFORM_SECONDS)
    with taking(2 * UNIFORM_SECONDS):
        await flows.register(FREE)


async def test_the_owner_of_an_active_address_gets_one_notice_a_day(autojump_clock: object, active: Flows) -> None:
    """A mail of its own kind, no code, and the account stays as it is."""
    before = await active.account()
    for _ in range(3):
        assert await active.register(password=OTHER) is None
    [notice] = active.accounts.notices
    after = await active.account()
    assert (after.password_hash, after.mails) == (before.password_hash, before.mails)
    assert (notice.kind, notice.id in active.wakeups.woken) == (MailKind.NOTICE, True)


async def test_a_pending_address_that_is_held_gets_no_mail(autojump_clock: object, flows: Flows) -> None:
    """Its own code is on the way."""
    await flows.register(password=OTHER)
    assert (len(flows.accounts.mails), flows.accounts.notices) == (1, [])
    assert await flows.hashing.check(PASSWORD.encode(), (await flows.account()).password_hash)


async def test_an_address_without_codes_gets_the_same_answer_and_no_mail(autojump_clock: object) -> None:
    """The budget per address does not show, not even to registrations that race in one batch."""
    async with Flows.running(NO_LIMITS, strict=True) as flows:
        with taking(UNIFORM_SECONDS):
            async with callers() as racers:
                for number in range(8):
                    racers.call(partial(flows.register, key=f"k-{number}", by=client(f"198.51.100.{number}")))
        assert (racers.heard, len(flows.accounts.mails)) == ([None] * 8, 1)
        with taking(6 * UNIFORM_SECONDS):
            for _ in range(6):
                flows.accounts.mail_is(MailState.DEAD)
                assert await flows.register() is None
        assert len(flows.accounts.mails) == 5


@pytest.mark.parametrize("email", [TAKEN, FREE])
async def test_the_clients_codes_of_an_address_show_for_both(autojump_clock: object, flows: Flows, email: str) -> None:
    """Three an hour for a client and an address, taken or free, dead or alive."""
    for _ in range(3):
        assert await flows.register(email) is None
    await refused(errors.CodesExhausted, flows.register(email))


@pytest.mark.parametrize("email", [TAKEN, FREE])
async def test_a_key_is_bound_for_a_taken_address_too(autojump_clock: object, flows: Flows, email: str) -> None:
    """A repeat costs no hash, another body is refused."""
    assert await flows.register(email, key="k-1") is None
    hashes = flows.hashing.hashes
    assert await flows.register(email, key="k-1") is None
    assert flows.hashing.hashes == hashes
    await refused(errors.IdempotencyKeyReused, flows.register(email, OTHER, key="k-1"))


async def test_every_failed_activation_is_the_same(autojump_clock: object) -> None:
    """Unknown, wrong password, wrong, expired and exhausted codes, already active: one refusal at one time."""
    async with Flows.running(replace(LIMITS, password=None, password_client=None), strict=True) as flows:

        async def fail(code: str, password: str = PASSWORD, email: str = TAKEN) -> None:
            with taking(UNIFORM_SECONDS):
                call = flows.call("activate", code, password=password, email=email)
                failed = await refused(errors.ActivationFailed, call)
            assert failed.__cause__ is None

        await flows.register()
        right, wrong = await flows.code(), await flows.wrong_code()
        await fail(right, email=FREE)
        await fail(right, OTHER)
        for _ in range(6):
            await fail(wrong)
        await fail(right)
        flows.accounts.mail_is(MailState.DEAD)
        await flows.register()
        flows.accounts.mail_is(MailState.ACCEPTED)
        flows.clock.advance(60)
        await fail(await flows.code())
        flows.accounts.mail_is(MailState.DEAD)
        await flows.register()
        await flows.call("activate", await flows.code())
        await fail(await flows.code())


@pytest.mark.parametrize("email", [TAKEN, FREE])
@pytest.mark.parametrize(
    ("flow", "refusal"),
    [
        (["activate", "000000"], errors.ActivationFailed),
        (["progress"], errors.InvalidCredentials),
        (["profile"], errors.InvalidCredentials),
    ],
)
async def test_a_pending_account_looks_like_an_unknown_one(
    autojump_clock: object, flows: Flows, flow: list[str], refusal: type[errors.Refusal], email: str
) -> None:
    """The same refusal at the same time, and counted: three a minute for a client and an address."""
    for _ in range(3):
        with taking(UNIFORM_SECONDS):
            await refused(refusal, flows.call(*flow, email=email))
    await refused(errors.RateLimited, flows.call(*flow, email=email))


@pytest.mark.parametrize(("email", "password"), [(TAKEN, PASSWORD), (TAKEN, OTHER), (FREE, PASSWORD)])
async def test_resend_always_answers_the_same(autojump_clock: object, flows: Flows, email: str, password: str) -> None:
    """A mail goes only to a pending account whose password was right; every call counts."""
    flows.clock.advance(30)
    for _ in range(3):
        with taking(UNIFORM_SECONDS):
            assert await flows.call("resend", email=email, password=password) is None
    assert len(flows.accounts.mails) == (2 if (email, password) == (TAKEN, PASSWORD) else 1)
    await refused(errors.RateLimited, flows.call("resend", email=email, password=password))


async def test_an_active_account_is_shown_to_its_owner_within_the_limit_of_calls(
    autojump_clock: object, active: Flows
) -> None:
    """A success counts as no guess; twenty a minute."""
    for _ in range(10):
        assert (await active.call("profile")).is_activated
        assert (await active.call("progress")).email == TAKEN
    await refused(errors.RateLimited, active.call("profile"))


async def test_a_store_that_is_away_says_so(autojump_clock: object, flows: Flows) -> None:
    """An outage is no secret, and is the same for everybody."""
    flows.accounts.away = StoreUnavailable()
    for email in (TAKEN, FREE):
        await refused(StoreUnavailable, flows.register(email))
