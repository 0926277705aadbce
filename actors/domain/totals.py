"""What one worker has counted since it started: totals that only grow, and a histogram per route and minute.

A total's name is its fields joined by `|`: `requests|POST /api/v1/users/register|201`, `bucket|GET /|25` (requests of
that route that took at most 25 ms and more than the bound before), `sum|GET /` (milliseconds). Names with other first
fields are counters of the runtime, `restarts|user_registry`.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from actors.domain.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WINDOW_SECONDS = 3600
SLICE_SECONDS = 60  # the window slides by whole slices; shorter ones cost memory and merging, and tell nothing more
BOUNDS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)  # milliseconds; Prometheus' customary buckets
OVERFLOW = "+Inf"
ROUTE_LIMIT = 100  # distinct labels: a bug that makes labels from paths must not fill the memory
OTHER = "other"


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker tells the stores: all its totals, the levels as they are now, and the slices that changed.

    `worker` is unique to one run of one process. `version` grows with every report, so that a late write never
    replaces a newer one. `leaving` is the last report's mark. Slices map their start (Unix seconds) to packed
    histograms by route.
    """

    worker: str
    version: int
    totals: Mapping[str, float]
    levels: Mapping[str, float] = field(default_factory=dict)
    slices: Mapping[int, Mapping[str, bytes]] = field(default_factory=dict)
    leaving: bool = False


class Totals:
    """The counts of one worker; outlives a crash of the actor that feeds it."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.version = 0
        self._requests: dict[tuple[str, int], int] = {}
        self._buckets: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        self._counters: dict[str, float] = {}
        self._start = 0  # of the slice that is open
        self._open: dict[str, Histogram] = {}
        self._closed: dict[int, dict[str, bytes]] = {}

    def count(self, seen: Iterable[tuple[str, int, float]], now: float) -> None:
        """Fold answered requests, each a route, a status and milliseconds, that ended about `now`."""
        self._turn_to(slice_of(now))
        current, requests, buckets, sums = self._open, self._requests, self._buckets, self._sums
        for name, status, milliseconds in seen:
            route = name if name in buckets else self._admitted(name)
            key = (route, status)
            requests[key] = requests.get(key, 0) + 1
            buckets[route][bisect_left(BOUNDS, milliseconds)] += 1
            sums[route] += max(milliseconds, 0.0)
            histogram = current.get(route)
            if histogram is None:
                histogram = current[route] = Histogram()
            histogram.add(milliseconds)

    def _turn_to(self, start: int) -> None:
        """Close the slice of another minute: packed it takes a tenth of the memory, and it is written as it is."""
        if start == self._start:
            return
        self._closed[self._start] = {route: histogram.pack() for route, histogram in self._open.items()}
        reopened = self._closed.pop(start, {})  # where the clock goes back
        self._start, self._open = start, {route: Histogram.unpack(packed) for route, packed in reopened.items()}

    def _admitted(self, route: str) -> str:
        route = route.replace("|", "/") if len(self._buckets) < ROUTE_LIMIT else OTHER
        if route not in self._buckets:
            self._buckets[route] = [0] * (len(BOUNDS) + 1)
            self._sums[route] = 0.0
        return route

    def raise_to(self, counters: Mapping[str, float]) -> None:
        """Take over counters of the runtime; one that reads less than before (a rebuilt part) stays."""
        for name, value in counters.items():
            self._counters[name] = max(value, self._counters.get(name, 0))

    def totals(self) -> dict[str, float]:
        """Return all totals by name."""
        totals: dict[str, float] = {f"requests|{route}|{status}": n for (route, status), n in self._requests.items()}
        for route, counts in self._buckets.items():
            for bound, n in zip((*BOUNDS, OVERFLOW), counts, strict=True):
                if n:
                    totals[f"bucket|{route}|{bound}"] = n
            totals[f"sum|{route}"] = round(self._sums[route], 3)
        return totals | self._counters

    def report(self, levels: Mapping[str, float], *, leaving: bool = False) -> WorkerReport:
        """Return the next report, newer than any before; its slices are added where they are wanted."""
        self.version += 1
        return WorkerReport(self.worker, self.version, self.totals(), levels, leaving=leaving)

    def slices(self, now: float, since: int = 0) -> dict[int, dict[str, bytes]]:
        """Return the packed slices of the window, from the one that starts at `since`; forget what has left it."""
        self._turn_to(slice_of(now))
        oldest = first_slice(now)
        for start in [start for start, routes in self._closed.items() if start < oldest or not routes]:
            del self._closed[start]
        slices = {start: routes for start, routes in self._closed.items() if start >= since}
        if self._open:
            slices[self._start] = {route: histogram.pack() for route, histogram in self._open.items()}
        return slices


def slice_of(now: float) -> int:
    """Return the start of the slice that `now` (Unix seconds) lies in."""
    return int(now // SLICE_SECONDS) * SLICE_SECONDS


def first_slice(now: float) -> int:
    """Return the start of the oldest slice that has a part in the window that ends `now`."""
    return slice_of(now - WINDOW_SECONDS)


def together(reports: Iterable[WorkerReport]) -> dict[str, WorkerReport]:
    """Join what several stores know of each worker: its newest totals, all slices, the newest levels that there are."""
    joined: dict[str, WorkerReport] = {}
    for report in sorted(reports, key=lambda each: each.version):
        older = joined.get(report.worker, report)
        slices = {**older.slices, **report.slices}
        joined[report.worker] = replace(report, levels=report.levels or older.levels, slices=slices)
    return joined


def summed(reports: Iterable[WorkerReport], folded: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return each total over all workers, without what is folded; a worker must stand in one report only."""
    totals: dict[str, float] = {}
    for report in reports:
        inside = folded.get(report.worker, {})
        for name, value in report.totals.items():
            totals[name] = totals.get(name, 0) + value - inside.get(name, 0)
    return totals


class Window:
    """Merges the window's slices over all workers; most have not changed since the last time and are remembered."""

    def __init__(self) -> None:
        self._merged: dict[int, tuple[object, dict[str, Histogram]]] = {}

    def over(self, reports: Iterable[WorkerReport], now: float) -> dict[str, Histogram]:
        """Return one histogram per route of the window that ends `now`."""
        oldest = first_slice(now)
        parts: dict[int, list[tuple[str, str, bytes]]] = {}
        for report in reports:
            for start, histograms in report.slices.items():
                if start >= oldest:
                    parts.setdefault(start, []).extend((report.worker, *each) for each in histograms.items())
        self._merged = {start: self._slice(start, sorted(each)) for start, each in parts.items()}
        routes: dict[str, Histogram] = {}
        for _, merged in self._merged.values():
            for route, histogram in merged.items():
                routes.setdefault(route, Histogram()).merge(histogram)
        return routes

    def _slice(self, start: int, parts: list[tuple[str, str, bytes]]) -> tuple[object, dict[str, Histogram]]:
        remembered = self._merged.get(start)
        if remembered is not None and remembered[0] == parts:
            return remembered
        routes: dict[str, Histogram] = {}
        for _, route, packed in parts:
            with suppress(ValueError):  # written by another version or damaged: an hour without metrics would be worse
                routes.setdefault(route, Histogram()).merge(Histogram.unpack(packed))
        return parts, {route: histogram for route, histogram in routes.items() if histogram.count}
