"""The RateLimiter over windows in memory, on a clock that the test moves."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from actors.domain.rate_limit import Bucket, Rule
from actors.kit.supervisor import Supervisor
from actors.ports import Admit, StoreUnavailable
from actors.rate_limiter import GiveBack, RateLimiter
from tests.fakes.rate_limits import FakeRateLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from trio.testing import MockClock

    from actors.domain.rate_limit import Admission
    from actors.kit.mailbox import Address

RULE = Rule("register", 3, 3600)
MINE = Bucket(RULE, "192.0.2.7")


class CountingRateLimits(FakeRateLimits):
    """The fake, which remembers the sizes of its batches, waits to be let go and can crash once after deciding."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.batches: list[int] = []
        self.crashes = 0
        self.gate = anyio.Event()

    async def decide(self, asked: Sequence[Admit]) -> list[Admission]:
        """Decide when the gate is open."""
        self.batches.append(len(asked))
        await self.gate.wait()
        decided = await super().decide(asked)
        if self.crashes:
            self.crashes -= 1
            raise ZeroDivisionError
        return decided


@asynccontextmanager
async def limiter(windows: FakeRateLimits, counted: Counter[str] | None = None) -> AsyncIterator[Address]:
    """Run the actor around the body."""
    supervisor = Supervisor(lambda *_: None)
    address = supervisor.start(lambda: RateLimiter(windows, Counter() if counted is None else counted))
    async with supervisor.running():
        yield address


async def test_it_answers_what_the_windows_decide(autojump_clock: MockClock) -> None:
    """Three are admitted, the fourth is told to wait, and after that wait it is admitted."""
    async with limiter(FakeRateLimits(anyio.current_time)) as address:
        for _ in range(3):
            assert (await address.ask(Admit((MINE,)))).admitted
        refused = await address.ask(Admit((MINE,)))
        assert not refused.admitted
        await anyio.sleep(refused.retry_after)
        assert (await address.ask(Admit((MINE,)))).admitted


async def test_what_waits_is_decided_in_one_call() -> None:
    """Requests that arrive while a batch is under way go together in the next one, and each gets its own answer."""
    windows = CountingRateLimits(anyio.current_time)
    answers: list[bool] = []

    async def ask() -> None:
        answers.append((await address.ask(Admit((MINE,)))).admitted)

    async with limiter(windows) as address, anyio.create_task_group() as askers:
        askers.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        for _ in range(9):
            askers.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        windows.gate.set()
    assert windows.batches == [1, 9]
    assert sorted(answers) == [False] * 7 + [True] * 3


async def test_a_use_is_given_back() -> None:
    """After a ticket is given back its place is free for the next one."""
    async with limiter(FakeRateLimits(anyio.current_time)) as address:
        admissions = [await address.ask(Admit((MINE,))) for _ in range(3)]
        assert not (await address.ask(Admit((MINE,), count=False))).admitted
        assert address.offer(GiveBack((MINE,), admissions[1].ticket))
        assert (await address.ask(Admit((MINE,)))).admitted


async def test_an_outage_refuses_and_passes() -> None:
    """While the stores are away nobody is admitted, and the actor goes on after it."""
    windows = FakeRateLimits(anyio.current_time)
    windows.away = StoreUnavailable()
    async with limiter(windows) as address:
        with pytest.raises(StoreUnavailable):
            await address.ask(Admit((MINE,)))
        windows.away = None
        assert (await address.ask(Admit((MINE,)))).readings[0].remaining == 2


async def test_a_lost_give_back_refuses_nobody() -> None:
    """A give-back that finds the stores away is counted as lost."""
    windows = FakeRateLimits(anyio.current_time)
    counted = Counter[str]()
    async with limiter(windows, counted) as address:
        ticket = (await address.ask(Admit((MINE,)))).ticket
        windows.away = StoreUnavailable()
        address.offer(GiveBack((MINE,), ticket))
        with pytest.raises(StoreUnavailable):
            await address.ask(Admit((MINE,)))
        windows.away = None
        assert (await address.ask(Admit((MINE,)))).readings[0].remaining == 1
    assert counted["limits_give_backs_lost"] == 1
    assert counted["limits_given_back"] == 0


async def test_a_crash_counts_nobody_twice() -> None:
    """Asks that are handled again after a crash in the midst of their batch use one place each."""
    windows = CountingRateLimits(anyio.current_time)
    windows.crashes = 1
    remaining: list[int] = []

    async def ask() -> None:
        remaining.append((await address.ask(Admit((MINE,)))).readings[0].remaining)

    async with limiter(windows) as address, anyio.create_task_group() as askers:
        askers.start_soon(ask)
        askers.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        windows.gate.set()
    assert windows.batches == [2, 1, 1]
    async with limiter(windows) as address:
        assert (await address.ask(Admit((MINE,), count=False))).readings[0].remaining == 1


async def test_decisions_are_counted_by_rule() -> None:
    """Uses count as admitted for each rule, refusals for the full ones alone, looks only when they refuse."""
    counted = Counter[str]()
    wide = Bucket(Rule("wide", 9, 60), "192.0.2.7")
    async with limiter(FakeRateLimits(anyio.current_time), counted) as address:
        for _ in range(3):
            await address.ask(Admit((MINE, wide), count=False))
            await address.ask(Admit((MINE, wide)))
        await address.ask(Admit((MINE, wide)))
        await address.ask(Admit((MINE, wide), count=False))
        address.offer(GiveBack((MINE,), "unknown"))
    assert counted == {
        "limits_admitted|register": 3,
        "limits_admitted|wide": 3,
        "limits_refused|register": 2,
        "limits_given_back": 1,
    }
