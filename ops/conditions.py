"""Reads and checks what `metrics.py --fail-if` is given: `p99>500ms`, `errors>0`, `queued>=100`."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PATTERN = re.compile(r"\s*(?P<name>[a-z0-9_]+)\s*(?P<sign>>=|<=|>|<|==)\s*(?P<number>[0-9.]+)\s*(?P<unit>ms|s|%|)\s*")
SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
}
UNITS = {"ms": 1.0, "s": 1000.0, "%": 0.01, "": 1.0}
LATENCIES = ("p50", "p95", "p99", "max")


class BadCondition(ValueError):
    """The text is no condition; it says which names there are."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A figure, a comparison and a number; milliseconds for times."""

    text: str
    name: str
    sign: str
    number: float

    def holds(self, figures: dict[str, float]) -> bool:
        """Whether it is so; a figure that does not exist yet, like a percentile before any request, never is."""
        value = figures.get(self.name)
        return value is not None and SIGNS[self.sign](value, self.number)


def condition(text: str) -> Condition:
    """Read one condition; raises BadCondition."""
    match = PATTERN.fullmatch(text)
    if match is None or match["name"] not in NAMES:
        raise BadCondition(f"{text!r} is no condition like 'p99>500ms'; names: {', '.join(NAMES)}")
    try:
        number = float(match["number"])
    except ValueError:
        raise BadCondition(f"{text!r} has no number") from None
    return Condition(text.strip(), match["name"], match["sign"], number * _scale(match["name"], match["unit"]))


def _scale(name: str, unit: str) -> float:
    if name.endswith("_seconds"):
        return {"ms": 0.001}.get(unit, 1.0)
    return UNITS[unit]


def figures(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the figures that conditions can name; latencies are those of the slowest route."""
    found: dict[str, float] = {}
    for name in LATENCIES:
        values = [route[name] for route in metrics["latencies"].values()]
        if values:
            found[name] = max(values)
    requests = sum(metrics["request_counts"].values())
    found["requests"] = requests
    found["errors"] = metrics["error_count"]
    if requests:
        found["error_rate"] = metrics["error_count"] / requests
    mail = metrics["mail"]
    found["queued"] = mail["queued"]
    found["oldest_queued_seconds"] = mail["oldest_queued_seconds"]
    for name in LATENCIES[:-1]:
        if mail["time_to_accept"][name] is not None:
            found[f"accept_{name}"] = mail["time_to_accept"][name]
    found.update(metrics["business_metrics"])
    found["workers"] = metrics["workers"]
    return found


NAMES = (
    *LATENCIES,
    "requests",
    "errors",
    "error_rate",
    "queued",
    "oldest_queued_seconds",
    *(f"accept_{name}" for name in LATENCIES[:-1]),
    "registrations",
    "activations",
    "resends",
    "mails_accepted",
    "mails_dead",
    "workers",
)
