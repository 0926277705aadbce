"""The RateLimiter over windows in memory, on a clock that the test moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from trio.testing import wait_all_tasks_blocked

from actors.domain.rate_limit import Admission, Bucket, Rule
from actors.kit.mailbox import Address
from actors.kit.supervisor import Supervisor
from actors.ports import Admit, StoreUnavailable
from actors.rate_limiter import GiveBack, RateLimiter
from tests.fakes.callers import callers, refused
from tests.fakes.rate_limits import FakeRateLimits

MINE = Bucket(Rule("register", 3, 3600), "192.0.2.7")
WIDE = Bucket(Rule("wide", 9, 60), "192.0.2.7")


class CountingRateLimits(FakeRateLimits):
    """The fake, which remembers the sizes of its batches, waits to be let go and can crash once after deciding."""

    def __init__(self) -> None:
        super().__init__(trio.current_time)
        self.batches: list[int] = []
        self.crashes = 0
        self.gate = trio.Event()

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


async def test_what_waits_is_decided_in_one_call() -> None:
    """Requests that arrive while a batch is under way go together in the next one, and each gets its own answer."""
    windows = CountingRateLimits()
    async with limiter(windows) as address, callers() as askers:
        await askers.call_in_turn(address.ask, Admit((MINE,)))
        for _ in range(9):
            await askers.call_in_turn(address.ask, Admit((MINE,)))
        windows.gate.set()
    assert windows.batches == [1, 9]
    assert sorted(answer.admitted for answer in askers.heard) == [False] * 7 + [True] * 3


async def test_a_crash_counts_nobody_twice() -> None:
    """Asks that are handled again after a crash in the midst of their batch use one place each."""
    windows = CountingRateLimits()
    windows.crashes = 1
    async with limiter(windows) as address, callers() as askers:
        askers.call(address.ask, Admit((MINE,)))
        askers.call(address.ask, Admit((MINE,)))
        await wait_all_tasks_blocked()
        windows.gate.set()
    assert windows.batches == [2, 1, 1]
    async with limiter(windows) as address:
        assert (await address.ask(Admit((MINE,), count=False))).readings[0].remaining == 1


async def test_an_outage_refuses_and_passes() -> None:
    """While the stores are away nobody is admitted, and a give-back is counted as lost; the actor goes on after it."""
    windows, counted = FakeRateLimits(trio.current_time), Counter[str]()
    async with limiter(windows, counted) as address:
        ticket = (await address.ask(Admit((MINE,)))).ticket
        for lost in (1, 2):
            windows.away = StoreUnavailable()
            address.offer(GiveBack((MINE,), ticket))
            await refused(StoreUnavailable, address.ask(Admit((MINE,))))
            windows.away = None
            assert (await address.ask(Admit((MINE,)))).readings[0].remaining == 2 - lost
            assert (counted["limits_give_backs_lost"], counted["limits_given_back"]) == (lost, 0)


async def test_decisions_are_counted_by_rule() -> None:
    """Uses count as admitted for each rule, refusals for the full ones alone, looks only when they refuse."""
    counted = Counter[str]()
    async with limiter(FakeRateLimits(trio.current_time), counted) as address:
        for _ in range(3):
            await address.ask(Admit((MINE, WIDE), count=False))
            ticket = (await address.ask(Admit((MINE, WIDE)))).ticket
        await address.ask(Admit((MINE, WIDE)))
        assert not (await address.ask(Admit((MINE, WIDE), count=False))).admitted
        for back in (ticket, "unknown"):
            address.offer(GiveBack((MINE,), back))
            assert (await address.ask(Admit((MINE,), count=False))).admitted  # its place is free for the next one
    assert counted == {
        "limits_admitted|register": 3,
        "limits_admitted|wide": 3,
        "limits_refused|register": 2,
        "limits_given_back": 2,
    }
