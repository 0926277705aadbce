"""Reads the metrics of all workers: the maximum that Redis, Postgres and this process know of each, summed."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from actors.domain.tally import Window, WorkerReport, first_slice, summed, together
from actors.kit.mailbox import MachineError
from actors.metrics_ports import Business, Holdings, Machinery, MailQueue, Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.domain.tally import Tally
    from actors.metrics_ports import BusinessBooks, Ledger, QuickStore

FRESH_SECONDS = 0.25  # many readers at a time share one reading; far below the 2 s that the metrics may lag
REDIS_AWAY = "Redis is away: request counters of other workers may lag by a second more."
DATABASE_AWAY = "The database is away: business metrics, mails and workers that are gone are as of the last reading."


class Reader:
    """A MetricsReader over both stores and the process' own tally.

    With Redis away the ledger tells; with the database away Redis and what was last read from the database; with both
    away this process still tells how it stands itself.
    """

    def __init__(  # noqa: PLR0913 - each is one source; the last by name
        self,
        tally: Tally,
        quick: QuickStore,
        ledger: Ledger,
        books: BusinessBooks,
        now: Callable[[], float] = time.time,
        *,
        machinery: Callable[[], Machinery] = Machinery,
    ) -> None:
        self._tally = tally
        self._quick = quick
        self._ledger = ledger
        self._books = books
        self._now = now
        self._machinery = machinery
        self._window = Window()
        self._reading = anyio.Lock()
        self._metrics: Metrics | None = None
        self._read_at = 0.0
        self._booked: tuple[Holdings, Business, MailQueue] | None = None

    async def read(self) -> Metrics:
        """Return the metrics; raises StoreUnavailable when the database is away and nothing is remembered."""
        async with self._reading:
            if self._metrics is None or abs(self._now() - self._read_at) >= FRESH_SECONDS:
                self._metrics = await self._read()
                self._read_at = self._now()
            return self._metrics

    async def _read(self) -> Metrics:
        now = self._now()
        oldest = first_slice(now)
        quick = await self._quick_holdings(oldest)  # before the ledger: what is forgotten here stands there already
        booked, books_are_open = await self._books_holdings(oldest, quick)
        ledger, business, mail = booked
        levels, slices = self._machinery().levels, self._tally.slices(now)
        own = WorkerReport(self._tally.worker, self._tally.version + 1, self._tally.totals(), levels, slices)
        reports = together([*ledger.reports, *(quick.reports if quick else ()), own]).values()
        live = (quick.live if quick else ledger.live) | {self._tally.worker}
        notes = [] if quick else [REDIS_AWAY]
        return Metrics(
            totals=summed(reports, ledger.folded),
            levels={report.worker: report.levels for report in reports if report.worker in live},
            latencies=self._window.over(reports, now),
            business=business,
            mail=mail,
            workers=len(live),
            notes=notes if books_are_open else [*notes, DATABASE_AWAY],
        )

    async def _quick_holdings(self, oldest: int) -> Holdings | None:
        try:
            return await self._quick.read(oldest)
        except MachineError:
            return None

    async def _books_holdings(
        self, oldest: int, quick: Holdings | None
    ) -> tuple[tuple[Holdings, Business, MailQueue], bool]:
        """Return what the database holds, and whether that is of this moment."""
        known = [report.worker for report in quick.reports] if quick else []
        try:
            ledger = await self._ledger.read(oldest, [*known, self._tally.worker])
            self._booked = (ledger, await self._books.business(), await self._books.mail())
        except MachineError:
            if self._booked is None:
                raise
            held, business, mail = self._booked
            return (replace(held, live=frozenset()), business, mail), False
        return self._booked, True
