"""A circuit breaker: what opens it, what closes it, and what it does not see."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import anyio
import pytest
from trio.testing import MockClock

from service.breaker import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Breaker, BreakerOpen
from tests.fakes.callers import refused


class Stalled(Exception):
    """The server did not answer in time."""


class Refused(Exception):
    """The server refused the connection."""


class Odd(Exception):
    """The server answered with something else."""


def breaker() -> Breaker:
    """Return a closed breaker that knows Stalled and Refused."""
    return Breaker(stalls=(Stalled,), refusals=(Refused,))


def unheard() -> None:
    """Be told of a change."""


def call(breaker: Breaker, *ends: type[Exception] | None) -> bool:
    """Let calls end under the breaker, well or with an error; return whether it is open then."""
    for end in ends:
        if end is None:
            with breaker.guard():
                pass
        else:
            with pytest.raises(end), breaker.guard():
                raise end
    return breaker.is_open


async def succeed() -> None:
    """Be a good probe."""


@asynccontextmanager
async def probed(
    breaker: Breaker, probe: Callable[[], Awaitable[None]] = succeed, report: Callable[[], None] = unheard
) -> AsyncIterator[None]:
    """Probe the breaker beside the body."""
    async with anyio.create_task_group() as aside:
        aside.start_soon(breaker.probing, probe, report)
        yield
        aside.cancel_scope.cancel()


def test_one_stall_stops_all_calls() -> None:
    """After the first time-out no body runs any more."""
    b = breaker()
    assert call(b, Stalled)
    with pytest.raises(BreakerOpen), b.guard():
        pytest.fail("the body ran")
    assert b.reason == "Stalled"


def test_three_refusals_in_a_row_stop_all_calls() -> None:
    """Two let the next call through; a good call, or an error of another type, starts the count again."""
    b = breaker()
    assert not call(b, Refused, Refused, None, Refused, Refused, Odd, Refused, Refused)
    assert call(b, Refused)


async def test_a_good_probe_closes_it(autojump_clock: MockClock) -> None:
    """Calls pass again after the first good probe, and both changes are reported."""
    b = breaker()
    probes: list[float] = []
    reported: list[bool] = []

    async def probe() -> None:
        probes.append(anyio.current_time())
        if len(probes) < 8:
            raise Refused if len(probes) % 2 else Stalled

    async with probed(b, probe, lambda: reported.append(b.is_open)):
        await anyio.sleep(5)
        assert probes == [], "a closed breaker is not probed"
        start = anyio.current_time()
        call(b, Stalled)
        await anyio.sleep(20)
    assert (reported, b.is_open) == ([True, False], False)
    assert probes[0] == pytest.approx(start + FIRST_PAUSE_SECONDS)
    pauses = [later - earlier for earlier, later in pairwise(probes)]
    assert pauses == pytest.approx([0.2, 0.4, 0.8, *[LONGEST_PAUSE_SECONDS] * 4])


async def test_it_opens_again_after_it_closed(autojump_clock: MockClock) -> None:
    """A second outage is stopped, counted and ended as the first; refusals before the first are forgotten."""
    b = breaker()
    async with probed(b):
        assert call(b, Refused, Refused, Refused)
        await anyio.sleep(1)
        assert not call(b, Refused)
        assert call(b, Stalled)
        await anyio.sleep(1)
        assert (b.is_open, b.opened) == (False, 2)


async def test_a_call_from_before_an_outage_opens_nothing_after_it(autojump_clock: MockClock) -> None:
    """A slow call's failure that arrives after the server is back counts for nothing."""
    b = breaker()

    async def slow() -> None:
        with b.guard():
            await anyio.sleep(3)
            raise Stalled

    async with probed(b):
        async with anyio.create_task_group() as calls:
            calls.start_soon(refused, Stalled, slow())
            await anyio.sleep(1)
            assert call(b, Stalled)
        assert not b.is_open


async def test_a_probe_that_breaks_is_a_bug(autojump_clock: MockClock) -> None:
    """An error that the breaker does not know is raised by the prober and not taken for an outage."""
    b = breaker()

    async def probe() -> None:
        raise Odd

    assert call(b, Stalled)
    with pytest.raises(Odd):
        await b.probing(probe, unheard)


async def test_a_cancelled_call_says_nothing_about_the_server() -> None:
    """Cancelling a call neither opens the breaker nor forgives refusals."""
    b = breaker()
    call(b, Refused, Refused)
    with anyio.CancelScope() as scope, b.guard():
        scope.cancel()
        await anyio.sleep_forever()
    assert call(b, Refused)
