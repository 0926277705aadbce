#!/usr/bin/env python3
"""Shows how many registrations become activations, and how long each step takes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from remote import Unreachable, add_remote_options, metrics_of, remote_of

if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLES = """\
examples:
  python ops/funnel.py                 since the service was set up
  python ops/funnel.py --over 60       of the next minute
  python ops/funnel.py --json

exit status: 0, or 3 without an answer from the service
"""
NO_ANSWER = 3
BAR_WIDTH = 28  # the line ends in column 80


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    options = argparse.ArgumentParser(
        prog="funnel.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_remote_options(options)
    options.add_argument("--over", type=float, metavar="SECONDS", help="count what happens from now on, for so long")
    options.add_argument("--json", action="store_true", help="print the figures as JSON")
    return options


def funnel(metrics: dict[str, Any], before: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the steps: what, how many, the share of registrations, and milliseconds at the 50th and 95th percentile.

    Codes sent again make more mails than registrations: shares may pass 1. Times are of the last hour.
    """
    counts = dict(metrics["business_metrics"])
    for name, count in (before or {"business_metrics": {}})["business_metrics"].items():
        counts[name] -= count
    first = counts["registrations"]
    times = {
        "registrations": metrics["latencies"].get("POST /api/v1/users/register"),
        "mails_accepted": metrics["mail"]["time_to_accept"],
        "activations": metrics["latencies"].get("POST /api/v1/users/activate"),
    }
    steps = []
    for name in ("registrations", "mails_accepted", "activations", "resends", "mails_dead"):
        took = times.get(name) or {}
        share = counts[name] / first if first else None
        steps.append(
            {"step": name, "count": counts[name], "share": share, "p50": took.get("p50"), "p95": took.get("p95")}
        )
    return steps


def lines(steps: list[dict[str, Any]]) -> list[str]:
    """Return the table."""
    found = [f"{'step':<15}{'count':>9}{'share':>8}  {'':<{BAR_WIDTH}}{'p50 ms':>9}{'p95 ms':>9}"]
    for step in steps:
        share = step["share"]
        bar = "#" * round(BAR_WIDTH * min(1.0, share or 0.0))
        percent = "-" if share is None else f"{share:.1%}"
        p50, p95 = ("-" if step[name] is None else f"{step[name]:.1f}" for name in ("p50", "p95"))
        found.append(f"{step['step']:<15}{step['count']:>9}{percent:>8}  {bar:<{BAR_WIDTH}}{p50:>9}{p95:>9}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the options say and return the exit status."""
    options = parser().parse_args(arguments)
    try:
        remote = remote_of(options)
        before = None
        if options.over is not None:
            before = metrics_of(remote)
            time.sleep(max(0.0, options.over))  # the time that --over asks to count
        steps = funnel(metrics_of(remote), before)
    except Unreachable as error:
        print(f"funnel.py: {error}", file=sys.stderr)
        return NO_ANSWER
    except KeyboardInterrupt:
        return 0
    print(json.dumps(steps, indent=2) if options.json else "\n".join(lines(steps)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
