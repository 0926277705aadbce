"""MetricsAggregator: takes what handlers offer, keeps cumulative totals, writes them over and over.

Repeating a write changes nothing: a lost one is made good by the next, and a wiped Redis is whole a second later.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NoReturn

import anyio

from actors.domain.totals import first_slice, slice_of
from actors.kit.actor import Actor
from actors.kit.mailbox import MachineError, Offer
from actors.metrics_ports import RuntimeStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from actors.domain.totals import Totals
    from actors.kit.mailbox import Address, Envelope
    from actors.metrics_ports import LastingStore, LiveStore

TICK_SECONDS = 1.0  # a worker that is killed takes at most so much of its request counters with it
ALIVE_SECONDS = 10.0  # how often an idle worker shows the lasting store that it lives
TIDY_SECONDS = 30.0  # how often a worker looks for what gone ones left


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
    """Folds observations into the worker's totals, and at each tick writes them to both stores.

    The lasting store is written to as often as the live one while there is something new: a worker that is killed in an
    outage, or right before a wipe, loses no more than at any other time. The live store is for outages of the other.
    The totals are the owner's, so they outlive a crash.
    """

    name: ClassVar[str] = "MetricsAggregator"
    capacity: ClassVar[int] = 16384  # what a worker can answer while a stalled store is waited for, many times over
    batch_limit: ClassVar[int] = 4096

    def __init__(
        self,
        totals: Totals,
        live: LiveStore,
        lasting: LastingStore,
        runtime: Callable[[], RuntimeStatistics] = RuntimeStatistics,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._totals = totals
        self._live = live
        self._lasting = lasting
        self._runtime = runtime
        self._now = now
        self._since = 0  # the first slice that the lasting store may lack
        self._written: Mapping[str, float] | None = None  # the totals that it has
        self._alive_due = self._tidy_due = 0.0

    async def handle(self, envelopes: Sequence[Envelope[Observation | Tick]]) -> None:
        """Fold the observations; write once, however many ticks waited."""
        messages = [envelope.message for envelope in envelopes]
        seen = [(o.route, o.status, o.milliseconds) for o in messages if isinstance(o, Observation)]
        if seen:
            self._totals.count(seen, self._now())
        if any(isinstance(message, Tick) for message in messages):
            await self._write()
            await self._tidy()

    async def stopped(self) -> None:
        """Write for the last time; the lasting store then speaks for this worker."""
        await self._write(leaving=True)

    async def _write(self, *, leaving: bool = False) -> None:
        now, runtime = self._now(), self._runtime()
        self._totals.raise_to(runtime.counters)
        report = self._totals.report(runtime.levels, leaving=leaving)
        with suppress(MachineError):  # the next tick writes more than was lost
            await self._live.write(report)
        if leaving or now >= self._alive_due or report.totals != self._written:
            with suppress(MachineError):
                await self._lasting.write(replace(report, slices=self._totals.slices(now, self._since)))
                self._since, self._written, self._alive_due = slice_of(now), report.totals, now + ALIVE_SECONDS
                if leaving:
                    await self._live.forget([report.worker])

    async def _tidy(self) -> None:
        """See that neither store keeps what the other should have, or what nobody needs; with one away the other."""
        now = self._now()
        if now < self._tidy_due:
            return
        self._tidy_due = now + TIDY_SECONDS
        with suppress(MachineError):  # the next round finds them still
            await self._take_over()
        with suppress(MachineError):
            await self._lasting.compact(first_slice(now))

    async def _take_over(self) -> None:
        """Enter into the lasting store what workers that died in its outage left in the live one."""
        stored = await self._live.read()
        gone = [report for report in stored.reports if report.worker not in {*stored.live, self._totals.worker}]
        for report in gone:
            await self._lasting.write(report)
        if gone:
            await self._live.forget([report.worker for report in gone])
