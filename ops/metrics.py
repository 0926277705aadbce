#!/usr/bin/env python3
"""Shows the metrics of a running Vestibule: once, live, as JSON, or as an exit status for a check."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from conditions import BadCondition, Condition, condition, figures
from remote import Unreachable, add_remote_options, metrics_of, remote_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remote import Remote

EXAMPLES = """\
examples:
  python ops/metrics.py                               one reading of http://127.0.0.1:8000
  python ops/metrics.py --watch                       live, until Ctrl-C
  python ops/metrics.py --json | jq .latencies        for scripts
  python ops/metrics.py --prometheus                  what Prometheus would get
  python ops/metrics.py --fail-if 'p99>500ms' --fail-if 'errors>0' --fail-if 'oldest_queued_seconds>60'

exit status: 0 all is well, 1 a condition of --fail-if holds, 2 wrong usage, 3 no answer from the service
"""
OK, CONDITION_HOLDS, WRONG_USAGE, NO_ANSWER = 0, 1, 2, 3


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    options = argparse.ArgumentParser(
        prog="metrics.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_remote_options(options)
    how = options.add_mutually_exclusive_group()
    how.add_argument(
        "--watch", action="store_true", help="show it again and again, with the course of the last minutes"
    )
    how.add_argument("--json", action="store_true", help="print the JSON as it came")
    how.add_argument("--prometheus", action="store_true", help="print the text for Prometheus")
    options.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="of --watch; default 1")
    options.add_argument("--fail-if", action="append", default=[], metavar="CONDITION", help="like 'p99>500ms'")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the options say and return the exit status."""
    options = parser().parse_args(arguments)
    try:
        conditions = [condition(text) for text in options.fail_if]
        remote = remote_of(options)
        if options.watch:
            return watch(remote, max(0.1, options.interval))
        return once(remote, options, conditions)
    except BadCondition as error:
        print(f"metrics.py: {error}", file=sys.stderr)
        return WRONG_USAGE
    except Unreachable as error:
        print(f"metrics.py: {error}", file=sys.stderr)
        return NO_ANSWER
    except ModuleNotFoundError as error:
        print(f"metrics.py: needs the package {error.name} (the extra `ops`), but for --json", file=sys.stderr)
        return WRONG_USAGE
    except KeyboardInterrupt:
        return OK


def once(remote: Remote, options: argparse.Namespace, conditions: list[Condition]) -> int:
    """Print one reading and check the conditions."""
    metrics = metrics_of(remote)
    if options.json:
        print(json.dumps(metrics, indent=2, ensure_ascii=False))
    elif options.prometheus:
        print(remote.get("/metrics", {"Accept": "text/plain"}, ops=True).body.decode(), end="")
    else:
        show(metrics, remote.url)
    return check(metrics, conditions)


def check(metrics: dict[str, Any], conditions: list[Condition]) -> int:
    """Tell on stderr which conditions hold."""
    values = figures(metrics)
    held = [each for each in conditions if each.holds(values)]
    for each in held:
        print(f"metrics.py: {each.text}: {each.name} is {values[each.name]:g}", file=sys.stderr)
    return CONDITION_HOLDS if held else OK


def show(metrics: dict[str, Any], url: str) -> None:
    """Print the tables, in colour on a terminal only."""
    from metrics_view import view  # noqa: PLC0415 - --json works without rich
    from rich.console import Console  # noqa: PLC0415 - as above

    Console(width=None if sys.stdout.isatty() else 80, highlight=False).print(view(metrics, url))


def watch(remote: Remote, interval: float) -> int:
    """Show reading after reading; the first one must work, a later one that fails is told and tried again.

    A terminal shows the newest in place; anything else gets them one below the other.
    """
    from metrics_view import Course, view  # noqa: PLC0415 - as above
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.live import Live  # noqa: PLC0415 - as above

    course = Course()
    metrics = metrics_of(remote)
    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False)
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        while True:
            course.add(metrics, time.monotonic())
            shown = view(metrics, remote.url, course)
            live.update(shown, refresh=True) if live is not None else console.print(shown)
            time.sleep(interval)  # the pause that --interval asks for
            try:
                metrics = metrics_of(remote)
            except Unreachable as error:
                print(f"metrics.py: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
