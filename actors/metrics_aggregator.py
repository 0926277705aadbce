"""MetricsAggregator: takes what handlers offer, keeps cumulative totals, writes them over and over.

Repeating a write changes nothing, so no write is ever known to be needed: a lost one is made good by the next, and
a wiped Redis is whole again a second later.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn

import anyio

from actors.domain.tally import first_slice, slice_of
from actors.kit.actor import Actor
from actors.kit.mailbox import MachineError, Offer
from actors.metrics_ports import Machinery

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actors.domain.tally import Tally
    from actors.kit.mailbox import Address, Letter
    from actors.metrics_ports import Ledger, QuickStore

TICK_SECONDS = 1.0  # a worker that is killed takes at most so much of its request counters with it
PULSE_SECONDS = 10.0  # how often an idle worker shows the ledger that it lives
TIDY_SECONDS = 30.0  # how often a worker looks for what departed ones left


@dataclass(frozen=True, slots=True)
class Observation(Offer):
    """One answered request: its route's template (`POST /api/v1/users/register`), status and milliseconds."""

    route: str
    status: int
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Tick(Offer):
    """A second has passed: write."""


async def ticking(address: Address) -> NoReturn:
    """Offer the aggregator a tick each second, until cancelled; run it in the owner's task group."""
    while True:
        await anyio.sleep(TICK_SECONDS)
        address.offer(Tick())


class MetricsAggregator(Actor[Observation | Tick]):
    """Folds observations into the worker's tally, and at each tick writes it to both stores.

    The ledger is written to as often as the quick store while there is something new, so that a worker killed
    during an outage or right before a wipe of the quick store loses no more than one killed at any other time. A
    store that is away is written to later. The tally is the owner's, so it outlives a crash.
    """

    name: ClassVar[str] = "MetricsAggregator"
    capacity: ClassVar[int] = 16384  # what a worker can answer while a stalled store is waited for, many times over
    batch_limit: ClassVar[int] = 4096

    def __init__(
        self,
        tally: Tally,
        quick: QuickStore,
        ledger: Ledger,
        machinery: Callable[[], Machinery] = Machinery,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._tally = tally
        self._quick = quick
        self._ledger = ledger
        self._machinery = machinery
        self._now = now
        self._quick_since = self._ledger_since = 0  # the first slice that the store may lack
        self._ledger_totals: dict[str, float] | None = None
        self._pulse_due = self._tidy_due = 0.0

    async def handle(self, letters: Sequence[Letter[Observation | Tick]]) -> None:
        """Fold the observations; write once, however many ticks waited."""
        messages = [letter.message for letter in letters]
        seen = [(o.route, o.status, o.milliseconds) for o in messages if isinstance(o, Observation)]
        if seen:
            self._tally.count(seen, self._now())
        if any(isinstance(message, Tick) for message in messages):
            await self._write()
            await self._tidy()

    async def stopped(self) -> None:
        """Write for the last time; the ledger then speaks for this worker."""
        await self._write(leaving=True)

    async def _write(self, *, leaving: bool = False) -> None:
        now, machinery = self._now(), self._machinery()
        self._tally.raise_to(machinery.counters)
        quick_is_well = await self._write_quick(now, machinery, leaving=leaving)
        if leaving or now >= self._pulse_due or self._tally.totals() != self._ledger_totals:
            ledger_is_well = await self._write_ledger(now, machinery, leaving=leaving)
            if leaving and ledger_is_well and quick_is_well:
                with suppress(MachineError):  # it expires
                    await self._quick.forget([self._tally.worker])

    async def _write_quick(self, now: float, machinery: Machinery, *, leaving: bool) -> bool:
        try:
            slices = self._tally.slices(now, self._quick_since)
            if not await self._quick.write(self._tally.report(machinery.levels, slices, leaving=leaving)):
                slices = self._tally.slices(now)  # all of them, for a store that had lost this worker
                await self._quick.write(self._tally.report(machinery.levels, slices, leaving=leaving))
        except MachineError:
            self._quick_since = 0  # whatever it is when it comes back, it may have forgotten
            return False
        self._quick_since = slice_of(now)
        return True

    async def _write_ledger(self, now: float, machinery: Machinery, *, leaving: bool) -> bool:
        slices = self._tally.slices(now, self._ledger_since)
        report = self._tally.report(machinery.levels, slices, leaving=leaving)
        try:
            await self._ledger.write(report)
        except MachineError:
            return False
        self._ledger_totals = dict(report.totals)
        self._ledger_since = slice_of(now)
        self._pulse_due = now + PULSE_SECONDS
        return True

    async def _tidy(self) -> None:
        """See that neither store keeps what the other should have, or what nobody needs; with one away the other."""
        now = self._now()
        if now < self._tidy_due:
            return
        self._tidy_due = now + TIDY_SECONDS
        with suppress(MachineError):  # the next round finds them still
            await self._take_over()
        with suppress(MachineError):
            await self._ledger.compact(first_slice(now))

    async def _take_over(self) -> None:
        """Enter what departed workers left in the quick store into the ledger, for it forgets them in an hour."""
        departed = [report for report in await self._quick.departed() if report.worker != self._tally.worker]
        for report in departed:
            await self._ledger.write(report)
        if departed:
            await self._quick.forget([report.worker for report in departed])
