"""Reads the metrics of all workers: the maximum that Redis, Postgres and this process know of each, summed."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from actors.domain.totals import Window, WorkerReport, first_slice, summed, together
from actors.kit.mailbox import MachineError
from actors.metrics_ports import Business, MailFigures, Metrics, RuntimeStatistics, StoredReports

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.domain.totals import Totals
    from actors.metrics_ports import BusinessFigures, LastingStore, LiveStore

FRESH_SECONDS = 0.25  # many readers at a time share one reading; far below the 2 s that the metrics may lag
REDIS_AWAY = "Redis is away: request counters of other workers may lag by a second more."
DATABASE_AWAY = (
    "The database is away: business metrics, mails, latencies and workers that are gone are as of the last reading."
)


class Reader:
    """A MetricsReader over both stores and the process' own totals.

    With Redis away PostgreSQL tells; with the database away Redis and what was last read from the database; with both
    away this process still tells how it stands itself.
    """

    def __init__(  # noqa: PLR0913 - each is one source; the last by name
        self,
        totals: Totals,
        live: LiveStore,
        lasting: LastingStore,
        figures: BusinessFigures,
        now: Callable[[], float] = time.time,
        *,
        runtime: Callable[[], RuntimeStatistics] = RuntimeStatistics,
    ) -> None:
        self._totals = totals
        self._live = live
        self._lasting = lasting
        self._figures = figures
        self._now = now
        self._runtime = runtime
        self._window = Window()
        self._reading = anyio.Lock()
        self._metrics: Metrics | None = None
        self._read_at = 0.0
        self._remembered: tuple[StoredReports, Business, MailFigures] | None = None

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
        reported = await self._live_reports()  # before the lasting store: what is forgotten here is there already
        remembered, current = await self._lasting_figures(oldest, reported)
        lasting, business, mail = remembered
        levels, slices = self._runtime().levels, self._totals.slices(now)
        own = WorkerReport(self._totals.worker, self._totals.version + 1, self._totals.totals(), levels, slices)
        reports = together([*lasting.reports, *(reported.reports if reported else ()), own]).values()
        live = (reported.live if reported else lasting.live) | {self._totals.worker}
        notes = [] if reported else [REDIS_AWAY]
        return Metrics(
            totals=summed(reports, lasting.folded),
            levels={report.worker: report.levels for report in reports if report.worker in live},
            latencies=self._window.over(reports, now),
            business=business,
            mail=mail,
            workers=len(live),
            notes=notes if current else [*notes, DATABASE_AWAY],
        )

    async def _live_reports(self) -> StoredReports | None:
        try:
            return await self._live.read()
        except MachineError:
            return None

    async def _lasting_figures(
        self, oldest: int, reported: StoredReports | None
    ) -> tuple[tuple[StoredReports, Business, MailFigures], bool]:
        """Return what the database holds, and whether it was read just now."""
        known = [report.worker for report in reported.reports] if reported else []
        try:
            lasting = await self._lasting.read(oldest, [*known, self._totals.worker])
            self._remembered = (lasting, await self._figures.business(), await self._figures.mail())
        except MachineError:
            if self._remembered is None:
                raise
            held, business, mail = self._remembered
            return (replace(held, live=frozenset()), business, mail), False
        return self._remembered, True
