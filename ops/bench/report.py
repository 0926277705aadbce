"""What a bench has found: the table with its goals, the comparison with an older run, the gate, the plot."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NOISY = 0.15  # the spread of the bare route, as a share of its median, beyond which a run tells little
SLACK = 1.35  # how far beyond what was reached the gate lets a multiple go
ROLES = ("api", "mail worker", "postgres", "valkey")  # what is added up; generation and supervisor sleep
LOOPS = ("uvloop", "trio")
BARE = "bare Quart route: CPU ms"

# Name -> the goal, and whether less is better.
GOALS: dict[str, tuple[float, bool]] = {
    "uvloop, register + mail, 1: all": (10, True),
    "uvloop, register + mail, 16: all": (6, True),
    "uvloop, register + mail, 16: api": (3.7, True),
    "uvloop, register + mail, 16: mail worker": (1.5, True),
    "uvloop, register + mail, 16: postgres": (0.5, True),
    "uvloop, register + mail, 16: valkey": (0.3, True),
    "uvloop, register + mail, 16: per second": (700, False),
    "uvloop, register + mail, 64: all": (5, True),
    "uvloop, activate, 16: all": (3, True),
    "trio over uvloop, register + mail, 16": (1.4, True),
    "uvloop, limited, 16: api": (1.3, True),
    "uvloop, busy, 16: api": (1.3, True),
    "Redis round trips a registration + mail, 32": (1, True),
    "PostgreSQL commits a registration + mail, 32": (0.3, True),
    "201 to the mail's 250 at 20/s: p50 ms": (20, True),
    "201 to the mail's 250 at 20/s: p99 ms": (100, True),
    "backlog: mails per second": (1200, False),
    "PSS MB: api": (35, True),
    "PSS MB: mail worker": (45, True),
    "PSS MB: supervisor": (20, True),
    "vestibule --help: s": (0.3, True),
    "a worker, from the death of another one until it is ready: s": (0.5, True),
    "a generation, from SIGHUP until it is ready: s": (2.5, True),
    "growth of the API workers from 10000 to 200000 requests: %": (2, True),
    "PostgreSQL's CPU a registration beside 1000000 accounts, over an empty database": (1.2, True),
    "PostgreSQL's CPU a registration beside 10000000 accounts, over an empty database": (1.2, True),
} | {
    f"{path} p99 ms, cost {cost}, {idle} idle connections": (50, True)
    for path in ("/livez", "/readyz")
    for cost in (4, 12)
    for idle in (0, 1000)
}
GOALS |= {f"cost 12, {clients} clients: share of bcrypt's ceiling": (0.95, False) for clients in (2, 8, 64)}


class Figures:
    """Each figure of each round, by name."""

    def __init__(self) -> None:
        self.rounds: dict[str, list[float]] = defaultdict(list)
        self.statuses_seen: dict[str, dict[int, int]] = {}

    def note(self, name: str, value: float) -> None:
        """Take the figure of one round in."""
        self.rounds[name].append(value)

    def statuses(self, name: str, statuses: Mapping[int, int]) -> None:
        """Take in what the requests were answered with."""
        seen = self.statuses_seen.setdefault(name, {})
        for status, count in statuses.items():
            seen[status] = seen.get(status, 0) + count

    def median(self, name: str) -> float:
        """Return the median over the rounds."""
        return median(self.rounds[name])

    def beyond_bounds(self) -> int:
        """Print each multiple that is far beyond what was reached, and return how many there are."""
        worse = [
            (name, self.median(name), bound)
            for name, bound in REACHED.items()
            if name in self.rounds and self.median(name) > bound * SLACK
        ]
        for name, value, bound in worse:
            print(f"beyond its bound: {name}: {value:.2f}, reached was {bound}")
        return len(worse)


# The multiples that were reached, for the gate: on another machine they hold within SLACK.
REACHED = {
    "uvloop, register + mail, 1: all": 13.9,
    "uvloop, register + mail, 4: all": 11.3,
    "uvloop, register + mail, 16: all": 8.2,
    "uvloop, register + mail, 64: all": 6.9,
    "uvloop, activate, 16: all": 6.4,
    "uvloop, limited, 16: api": 1.3,
    "uvloop, busy, 16: api": 1.3,
    "trio over uvloop, register + mail, 16": 1.2,
    "Redis round trips a registration + mail, 32": 0.5,
    "PostgreSQL commits a registration + mail, 32": 0.95,
    "PSS MB: api": 43,
    "PSS MB: mail worker": 61,
    "PSS MB: supervisor": 9.2,
}


def show(figures: Figures) -> None:
    """Print a row for each figure: the median over the rounds, their spread, and the goal."""
    if {"trio, register + mail, 16: all", "uvloop, register + mail, 16: all"} <= figures.rounds.keys():
        loops = [figures.median(f"{loop}, register + mail, 16: all") for loop in ("trio", "uvloop")]
        figures.note("trio over uvloop, register + mail, 16", loops[0] / loops[1])
    print(f"{'':82}{'median':>9}{'least':>9}{'most':>9}   goal")
    for name, values in figures.rounds.items():
        verdict = ""
        if name in GOALS:
            goal, less = GOALS[name]
            met = median(values) <= goal if less else median(values) >= goal
            verdict = f"{'≤' if less else '≥'} {goal:g}{'' if met else '  MISSED'}"
        print(f"{name:82}{median(values):9.2f}{min(values):9.2f}{max(values):9.2f}   {verdict}")
    for what, statuses in figures.statuses_seen.items():
        print(f"{what}: {dict(sorted(statuses.items()))}")
    units = figures.rounds.get(BARE, [])
    if units and (max(units) - min(units)) / median(units) > NOISY:
        print(
            f"The machine was too noisy to judge: the bare route spread from {min(units):.3f} to {max(units):.3f} ms."
        )


def compare(old: Mapping[str, list[float]], figures: Figures) -> None:
    """Print each figure beside its median in an older run."""
    print(f"{'':82}{'old':>9}{'new':>9}{'new/old':>9}")
    for name in figures.rounds:
        if values := old.get(name):
            before, now = median(values), figures.median(name)
            print(f"{name:82}{before:9.2f}{now:9.2f}{now / before if before else 0:9.2f}")


def plot(runs: Mapping[str, Mapping[str, list[float]]], path: Path) -> None:
    """Draw the multiples of each row of each run as stacked bars, by role; needs `uv pip install matplotlib`."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - large, and for the plot alone

    names = dict.fromkeys(name for figures in runs.values() for name in figures if name.partition(",")[0] in LOOPS)
    rows: dict[str, dict[str, float]] = defaultdict(dict)
    for what in dict.fromkeys(name.rpartition(": ")[0] for name in names):
        for run, figures in runs.items():
            for role in ROLES:
                if values := figures.get(f"{what}: {role}"):
                    rows[f"{what} {run}".strip()][role] = median(values)
    picture = Figure(figsize=(9, 0.4 * len(rows) + 1.5), layout="constrained")
    axes = picture.add_subplot()
    left = [0.0] * len(rows)
    for role in ROLES:
        widths = [row.get(role, 0.0) for row in rows.values()]
        axes.barh(list(rows), widths, left=left, label=role)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("CPU outside the hash, in multiples of a bare Quart route")
    axes.legend()
    picture.savefig(path, dpi=90)
