"""Metrics stores in memory that can be away, be wiped and forget, as Redis and Postgres do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from actors.domain.tally import WorkerReport, summed, together
from actors.metrics_ports import Business, Holdings, MailQueue, Metrics
from actors.ports import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass
class MemoryStore:
    """What the quick store and the ledger have in common; `away` makes every call fail."""

    away: bool = False
    reports: dict[str, WorkerReport] = field(default_factory=dict)
    slices: dict[tuple[int, str], dict[str, bytes]] = field(default_factory=dict)
    writes: int = 0

    def reach(self) -> None:
        """Raise StoreUnavailable while the store is away."""
        if self.away:
            raise StoreUnavailable

    async def write(self, report: WorkerReport) -> bool:
        """Keep the report unless a newer one is held."""
        self.reach()
        self.writes += 1
        held = self.reports.get(report.worker)
        if held is None or held.version <= report.version:
            self.reports[report.worker] = replace(report, slices={})
        for start, routes in report.slices.items():
            self.slices.setdefault((start, report.worker), {}).update(routes)
        return held is not None

    def held(self, since: int) -> list[WorkerReport]:
        """Return the reports with their slices, and the slices whose totals are gone."""
        reports = [replace(report, slices=self.slices_of(report.worker, since)) for report in self.reports.values()]
        orphans = {worker for _, worker in self.slices} - set(self.reports)
        return reports + [WorkerReport(worker, 0, {}, slices=self.slices_of(worker, since)) for worker in orphans]

    def slices_of(self, worker: str, since: int) -> dict[int, Mapping[str, bytes]]:
        """Return the worker's slices from `since` on."""
        return {start: held for (start, name), held in self.slices.items() if name == worker and start >= since}


@dataclass
class MemoryQuickStore(MemoryStore):
    """A quick store; `silent` names the workers that have not written for some seconds."""

    silent: set[str] = field(default_factory=set)

    async def read(self, since: int) -> Holdings:
        """Return all reports."""
        self.reach()
        reports = self.held(since)
        live = {name for name, report in self.reports.items() if not report.leaving and name not in self.silent}
        return Holdings(reports, frozenset(live))

    async def departed(self) -> Sequence[WorkerReport]:
        """Return the reports of the silent and the leaving."""
        self.reach()
        gone = self.silent | {name for name, report in self.reports.items() if report.leaving}
        return [report for report in self.held(0) if report.worker in gone and report.worker in self.reports]

    async def forget(self, workers: Sequence[str]) -> None:
        """Drop the totals."""
        self.reach()
        for worker in workers:
            self.reports.pop(worker, None)

    def wipe(self) -> None:
        """Lose everything."""
        self.reports.clear()
        self.slices.clear()


@dataclass
class MemoryLedger(MemoryStore):
    """A ledger; `silent` names the workers that a compaction may fold. Keeps the books as well."""

    silent: set[str] = field(default_factory=set)
    folded: dict[str, Mapping[str, float]] = field(default_factory=dict)
    business_counts: Business = field(default_factory=Business)
    mail_queue: MailQueue = field(default_factory=MailQueue)

    async def read(self, since: int, known: Sequence[str] = ()) -> Holdings:
        """Return all reports that hold something beyond what is folded, and those that are known."""
        self.reach()
        reports = [
            report
            for report in self.held(since)
            if report.totals != self.folded.get(report.worker) or report.worker in known or report.slices
        ]
        live = {name for name, each in self.reports.items() if name and not each.leaving and name not in self.silent}
        return Holdings(reports, frozenset(live), dict(self.folded))

    async def compact(self, oldest: int) -> None:
        """Fold the silent and the leaving, and drop old slices."""
        self.reach()
        gone = [each for name, each in self.reports.items() if name and (each.leaving or name in self.silent)]
        held = self.reports.get("", WorkerReport("", 0, {}))
        self.reports[""] = replace(held, totals=summed(together([held, *gone]).values(), self.folded))
        self.folded.update({report.worker: report.totals for report in gone})
        self.slices = {key: sketches for key, sketches in self.slices.items() if key[0] >= oldest}

    async def business(self) -> Business:
        """Return what the test has set."""
        self.reach()
        return self.business_counts

    async def mail(self) -> MailQueue:
        """Return what the test has set."""
        self.reach()
        return self.mail_queue


@dataclass
class FixedReader:
    """A reader that knows what the test tells it."""

    metrics: Metrics | None

    async def read(self) -> Metrics:
        """Return what the test has set, or refuse."""
        if self.metrics is None:
            raise StoreUnavailable
        return self.metrics
