"""The table of a bench."""

from __future__ import annotations

from dataclasses import dataclass

STAND_IN = "catcher"  # plays the operator's mail server, so what it uses is shown beside the service's sum


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    connections: int
    count: int
    rate: float
    p50_ms: float
    p99_ms: float
    livez_p99_ms: float | None
    of_ceiling: float | None
    cpu_ms: dict[str, float]
    statuses: dict[int, int]


def show(rows: list[Row], facts: dict[str, object]) -> None:
    """Print the table and the facts."""
    for name, value in facts.items():
        print(f"{name}: {value}")
    heads = f"{'per s':>8}{'p50':>8}{'p99':>8}{'livez99':>9}{'ceiling':>9}"
    print(f"{'what':28}{'conn':>5}{'n':>6}{heads}  CPU ms outside the hash")
    for row in rows:
        livez = f"{row.livez_p99_ms:.1f}" if row.livez_p99_ms is not None else "-"
        ceiling = f"{row.of_ceiling:.2f}" if row.of_ceiling is not None else "-"
        own = {role: used for role, used in sorted(row.cpu_ms.items()) if role != STAND_IN}
        parts = ", ".join(f"{role} {used:.2f}" for role, used in own.items() if round(used, 2))
        beside = row.cpu_ms.get(STAND_IN, 0.0)
        parts += f" + {STAND_IN} {beside:.2f}" if round(beside, 2) else ""
        print(
            f"{row.what:28}{row.connections:5}{row.count:6}{row.rate:8.1f}{row.p50_ms:8.1f}{row.p99_ms:8.1f}"
            f"{livez:>9}{ceiling:>9}  {sum(own.values()):.2f} = {parts}  {row.statuses}"
        )
    print("CPU outside the hash counts at cost 4: at 12 one hash differs from the next by more than all the rest.")
