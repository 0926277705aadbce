"""A circuit breaker: what opens it, what closes it, and what it does not see."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import anyio
import pytest

from service.breaker import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Breaker, BreakerOpen

if TYPE_CHECKING:
    from trio.testing import MockClock


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


def fail(breaker: Breaker, error: Exception) -> None:
    """Let one call fail under the breaker."""
    with pytest.raises(type(error)), breaker.guard():
        raise error


def test_one_stall_stops_all_calls() -> None:
    """After the first time-out no body runs any more."""
    b = breaker()
    fail(b, Stalled())
    with pytest.raises(BreakerOpen), b.guard():
        pytest.fail("the body ran")
    assert b.is_open
    assert b.reason == "Stalled"


def test_three_refusals_in_a_row_stop_all_calls() -> None:
    """Two let the next call through, and a good call starts the count again."""
    b = breaker()
    for _ in range(2):
        fail(b, Refused())
    with b.guard():
        pass
    for _ in range(2):
        fail(b, Refused())
    assert not b.is_open
    fail(b, Refused())
    assert b.is_open


def test_other_errors_are_answers() -> None:
    """An error of another type passes, opens nothing and ends a row of refusals."""
    b = breaker()
    fail(b, Refused())
    fail(b, Refused())
    fail(b, Odd())
    fail(b, Refused())
    assert not b.is_open


async def test_a_good_probe_closes_it(autojump_clock: MockClock) -> None:
    """Calls pass again after the first good probe, and both changes are reported."""
    b = breaker()
    probes: list[float] = []
    reported: list[bool] = []

    async def probe() -> None:
        probes.append(anyio.current_time())
        if len(probes) < 8:
            raise Refused if len(probes) % 2 else Stalled

    async with anyio.create_task_group() as aside:
        aside.start_soon(b.probing, probe, lambda: reported.append(b.is_open))
        await anyio.sleep(5)
        assert probes == [], "a closed breaker is not probed"
        start = anyio.current_time()
        fail(b, Stalled())
        await anyio.sleep(20)
        aside.cancel_scope.cancel()
    assert reported == [True, False]
    assert not b.is_open
    assert probes[0] == pytest.approx(start + FIRST_PAUSE_SECONDS)
    pauses = [later - earlier for earlier, later in pairwise(probes)]
    assert pauses == pytest.approx([0.2, 0.4, 0.8, *[LONGEST_PAUSE_SECONDS] * 4])


async def test_it_opens_again_after_it_closed(autojump_clock: MockClock) -> None:
    """A second outage is stopped, counted and ended as the first; refusals before the first are forgotten."""
    b = breaker()

    async def probe() -> None:
        """Succeed."""

    async with anyio.create_task_group() as aside:
        aside.start_soon(b.probing, probe, unheard)
        for _ in range(3):
            fail(b, Refused())
        await anyio.sleep(1)
        assert not b.is_open
        fail(b, Refused())
        assert not b.is_open
        fail(b, Stalled())
        assert b.opened == 2
        await anyio.sleep(1)
        assert not b.is_open
        aside.cancel_scope.cancel()


async def test_a_call_from_before_an_outage_opens_nothing_after_it(autojump_clock: MockClock) -> None:
    """A slow call's failure that arrives after the server is back counts for nothing."""
    b = breaker()

    async def probe() -> None:
        """Succeed."""

    async def slow() -> None:
        with b.guard():
            await anyio.sleep(3)
            raise Stalled

    async def caller() -> None:
        with pytest.raises(Stalled):
            await slow()

    async with anyio.create_task_group() as aside:
        aside.start_soon(b.probing, probe, unheard)
        async with anyio.create_task_group() as calls:
            calls.start_soon(caller)
            await anyio.sleep(1)
            fail(b, Stalled())
        assert not b.is_open
        aside.cancel_scope.cancel()


async def test_a_probe_that_breaks_is_a_bug(autojump_clock: MockClock) -> None:
    """An error that the breaker does not know is raised by the prober and not taken for an outage."""
    b = breaker()

    async def probe() -> None:
        raise Odd

    fail(b, Stalled())
    with pytest.raises(Odd):
        await b.probing(probe, unheard)


async def test_a_cancelled_call_says_nothing_about_the_server() -> None:
    """Cancelling a call neither opens the breaker nor forgives refusals."""
    b = breaker()
    fail(b, Refused())
    fail(b, Refused())
    with anyio.CancelScope() as scope, b.guard():
        scope.cancel()
        await anyio.sleep_forever()
    fail(b, Refused())
    assert b.is_open
