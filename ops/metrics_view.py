"""The metrics as tables in 80 columns, with the course of the last minutes when they are watched."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

BARS = "▁▂▃▄▅▆▇█"
HISTORY = 40  # readings in a sparkline
SLOW, VERY_SLOW = 500.0, 2000.0  # milliseconds at the 99th percentile


class Course:
    """The last readings, a line for each figure: requests a second, the slowest route, the funnel and the mails."""

    def __init__(self) -> None:
        names = ("requests/s", "p95 ms", "activated %", "mail p95 ms")
        self.lines: dict[str, deque[float]] = {name: deque(maxlen=HISTORY) for name in names}
        self._last: tuple[float, int] | None = None

    def add(self, metrics: dict[str, Any], at: float) -> None:
        """Take a reading made at `at`, in seconds of any clock that only goes forward."""
        requests = sum(metrics["request_counts"].values())
        if self._last is not None and at > self._last[0]:
            self.lines["requests/s"].append(max(0, requests - self._last[1]) / (at - self._last[0]))
        self._last = (at, requests)
        business = metrics["business_metrics"]
        self.lines["p95 ms"].append(max((route["p95"] for route in metrics["latencies"].values()), default=0.0))
        self.lines["activated %"].append(100 * business["activations"] / max(1, business["registrations"]))
        self.lines["mail p95 ms"].append(metrics["mail"]["time_to_accept"]["p95"] or 0.0)


def sparkline(values: deque[float]) -> str:
    """Return a bar for each value, the highest one full; an empty string without values."""
    top = max(values, default=0.0)
    if not top:
        return BARS[0] * len(values)
    return "".join(BARS[min(len(BARS) - 1, int(value / top * len(BARS)))] for value in values)


def view(metrics: dict[str, Any], url: str, course: Course | None = None) -> RenderableType:
    """Return everything, ready to print."""
    parts: list[RenderableType] = [_head(metrics, url)]
    parts += [Text(f"note: {note}", style="yellow") for note in metrics.get("notes") or ()]
    if course is not None and course.lines["requests/s"]:
        parts += [Text(f"{name:<11}{line[-1]:>9.1f}  {sparkline(line)}") for name, line in course.lines.items()]
    parts += [_requests(metrics), _business(metrics)]
    return Group(*parts)


def _head(metrics: dict[str, Any], url: str) -> Text:
    requests, errors = sum(metrics["request_counts"].values()), metrics["error_count"]
    statuses = "  ".join(f"{status}: {count}" for status, count in metrics["status_counts"].items())
    text = Text(f"{url}  {metrics['workers']} workers  {requests} requests  ")
    text.append(f"{errors} errors", style="red" if errors else "green")
    return text.append(f"\n{statuses or 'no request yet'}")


def _requests(metrics: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left", width=80)
    table.add_column("route", ratio=1, no_wrap=True, overflow="ellipsis")
    for name in ("requests", "p50 ms", "p95 ms", "p99 ms", "max ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for route, count in sorted(metrics["request_counts"].items(), key=lambda item: -item[1]):
        found = metrics["latencies"].get(route)
        cells = [_milliseconds(found[name]) for name in ("p50", "p95", "p99", "max")] if found else ["-"] * 4
        style = "" if not found or found["p99"] < SLOW else "yellow" if found["p99"] < VERY_SLOW else "red"
        table.add_row(route.replace("/api/v1/", "/…/"), str(count), *cells, style=style)
    return table


def _business(metrics: dict[str, Any]) -> Table:
    business, mail = metrics["business_metrics"], metrics["mail"]
    delays = mail["time_to_accept"]
    table = Table(box=None, pad_edge=False, show_header=False, width=80)
    for _ in range(4):
        table.add_column(no_wrap=True, ratio=1)
    table.add_row("registrations", str(business["registrations"]), "mails queued", str(mail["queued"]))
    table.add_row("activations", str(business["activations"]), "oldest", f"{mail['oldest_queued_seconds']} s")
    table.add_row("resends", str(business["resends"]), "accepted p50", _milliseconds(delays["p50"], " ms"))
    table.add_row(
        "mails accepted", str(business["mails_accepted"]), "accepted p95", _milliseconds(delays["p95"], " ms")
    )
    table.add_row("mails dead", str(business["mails_dead"]), "accepted p99", _milliseconds(delays["p99"], " ms"))
    return table


def _milliseconds(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    return (f"{value:.1f}" if value < 100 else f"{value:,.0f}") + unit  # noqa: PLR2004 - three figures are enough
