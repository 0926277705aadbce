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
        now, notes = self._now(), []
        try:  # before the lasting store: what is forgotten here is there already
            reported = await self._live.read()
        except MachineError:
            reported = None
            notes.append(REDIS_AWAY)
        known = reported.reports if reported else ()
        try:
            workers = [self._totals.worker, *(report.worker for report in known)]
            lasting = await self._lasting.read(first_slice(now), workers)
            business, mail = await self._figures.business(), await self._figures.mail()
            self._remembered = (replace(lasting, live=frozenset()), business, mail)
        except MachineError:
            if self._remembered is None:
                raise
            lasting, business, mail = self._remembered
            notes.append(DATABASE_AWAY)
        levels, slices = self._runtime().levels, self._totals.slices(now)
        own = WorkerReport(self._totals.worker, self._totals.version + 1, self._totals.totals(), levels, slices)
        reports = together([*lasting.reports, *known, own]).values()
        live = (reported or lasting).live | {own.worker}
        return Metrics(
            totals=summed(reports, lasting.folded),
            levels={report.worker: report.levels for report in reports if report.worker in live},
            latencies=self._window.over(reports, now),
            business=business,
            mail=mail,
            workers=len(live),
            notes=notes,
        )
