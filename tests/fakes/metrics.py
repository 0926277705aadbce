"""Metrics stores in memory that can be away, be wiped and forget, as Redis and Postgres do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from actors.domain.totals import WorkerReport, summed, together
from actors.metrics_ports import Business, MailFigures, StoredReports
from actors.ports import StoreUnavailable


@dataclass
class MemoryStore:
    """What both stores have in common: `away` makes every call fail, `silent` names the workers that write no more."""

    away: bool = False
    reports: dict[str, WorkerReport] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    writes: int = 0

    def reach(self) -> None:
        """Raise StoreUnavailable while the store is away."""
        if self.away:
            raise StoreUnavailable

    async def write(self, report: WorkerReport) -> None:
        """Keep the report unless a newer one is held."""
        self.reach()
        self.writes += 1
        held = self.reports.get(report.worker)
        if held is None or held.version <= report.version:
            self.reports[report.worker] = replace(report, slices={})

    def live(self) -> frozenset[str]:
        """Return the workers that are alive."""
        gone = self.silent | {name for name, report in self.reports.items() if report.leaving}
        return frozenset(set(self.reports) - gone - {""})


@dataclass
class MemoryLiveStore(MemoryStore):
    """A live store; `unforgetful` makes it fail whenever it is told to forget."""

    unforgetful: bool = False

    async def read(self) -> StoredReports:
        """Return all reports."""
        self.reach()
        return StoredReports(list(self.reports.values()), self.live())

    async def forget(self, workers: Sequence[str]) -> None:
        """Drop the workers."""
        self.reach()
        if self.unforgetful:
            raise StoreUnavailable
        for worker in workers:
            self.reports.pop(worker, None)


@dataclass
class MemoryLastingStore(MemoryStore):
    """A lasting store, which folds the silent and the leaving at once; knows the business figures as well."""

    slices: dict[tuple[int, str], dict[str, bytes]] = field(default_factory=dict)
    folded: dict[str, Mapping[str, float]] = field(default_factory=dict)
    business_counts: Business = field(default_factory=Business)
    mail_figures: MailFigures = field(default_factory=MailFigures)

    async def write(self, report: WorkerReport) -> None:
        """Keep the slices too."""
        await super().write(report)
        if self.reports[report.worker].version > report.version:
            return
        for start, routes in report.slices.items():
            self.slices.setdefault((start, report.worker), {}).update(routes)

    async def read(self, since: int, known: Sequence[str] = ()) -> StoredReports:
        """Return all reports that hold something beyond what is folded, and those that are known."""
        self.reach()
        slices: dict[str, dict[int, Mapping[str, bytes]]] = {}
        for (start, worker), routes in self.slices.items():
            if start >= since:
                slices.setdefault(worker, {})[start] = routes
        reports = [
            replace(report, slices=slices.pop(name, {}))
            for name, report in self.reports.items()
            if report.totals != self.folded.get(name) or name in known
        ]
        reports += [WorkerReport(worker, 0, {}, slices=left) for worker, left in slices.items()]
        return StoredReports(reports, self.live(), dict(self.folded))

    async def compact(self, oldest: int) -> None:
        """Fold what is gone, and drop old slices."""
        self.reach()
        gone = [report for name, report in self.reports.items() if name and name not in self.live()]
        held = self.reports.get("", WorkerReport("", 0, {}))
        self.reports[""] = replace(held, totals=summed(together([held, *gone]).values(), self.folded))
        self.folded |= {report.worker: report.totals for report in gone}
        self.slices = {key: routes for key, routes in self.slices.items() if key[0] >= oldest}

    async def business(self) -> Business:
        """Return what the test has set."""
        self.reach()
        return self.business_counts

    async def mail(self) -> MailFigures:
        """Return what the test has set."""
        self.reach()
        return self.mail_figures
