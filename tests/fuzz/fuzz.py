"""`just fuzz`: generated inputs for the readers, for the wire and for the description, on both loops, and their count.

Bounded: the defaults make more than 50,000 inputs in a few minutes. Ends with 1 for an answer of 500, a traceback in
the log, a worker that was replaced, or anything that Schemathesis finds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.e2e.instance import running
from tests.faults.hostile.conftest import FAULTS, OFF
from tests.fuzz.parsers import READERS, fuzz
from tests.fuzz.wire import Wire
from tests.servers.waiting import titled

TOKEN: Final = "fuzz-operator"
SETTINGS: Final = {**dict.fromkeys((*OFF, "CODE_LIMITS"), "off"), "RESEND_COOLDOWN_SECONDS": "0", "OPS_TOKEN": TOKEN}
SCHEMATHESIS: Final = Path(sys.executable).with_name("schemathesis")
CONFIG: Final = Path(__file__).with_name("schemathesis.toml")


def schema(url: str, folder: Path, seconds: int, start: int) -> tuple[int, bool]:
    """Run every check of Schemathesis for so many seconds; return how many cases it made, and whether all passed."""
    report = folder / "report.json"
    command = [
        str(SCHEMATHESIS),
        "--config-file",
        str(CONFIG),
        "run",
        f"{url}/openapi.json",
        "--checks",
        "all",
        "--seed",
        str(start),
        "--max-time",
        str(seconds),
        "--report-json-path",
        str(report),
        "--generation-database",
        "none",
    ]
    own = {**os.environ, "FUZZ_TOKEN": TOKEN}
    done = subprocess.run(command, check=False, cwd=folder, env=own, capture_output=True, text=True)
    if done.returncode:
        sys.stdout.write(done.stdout + done.stderr)
    cases = json.loads(report.read_text(encoding="utf-8"))["test_cases"]["generated"]
    return cases, done.returncode == 0


def service(loop: str, requests: int, seconds: int, start: int) -> tuple[int, list[str]]:
    """Fuzz a running service; return how many requests it was sent, and what went wrong."""
    with tempfile.TemporaryDirectory() as name, running(Path(name), loop, SETTINGS) as instance:
        before = titled(instance.process.pid, "api worker")
        wire = Wire(instance.port, start)
        wire.send(requests)
        cases, passed = schema(f"http://127.0.0.1:{instance.port}", Path(name), seconds, start)
        said = instance.said()
        wrong = [line[:600] for line in said.splitlines() if any(fault in line for fault in FAULTS)][:5]
        wrong += [] if passed else ["Schemathesis has findings"]
        wrong += [] if titled(instance.process.pid, "api worker") == before else ["a worker was replaced"]
        wrong += [f"{wire.statuses[500]} answers of 500"] if wire.statuses[500] or '"status":500' in said else []
    show(
        f"{loop}: requests as bytes",
        requests,
        ", ".join(f"{s or 'none'}: {n}" for s, n in sorted(wire.statuses.items())),
    )
    show(f"{loop}: cases of Schemathesis", cases, "")
    return requests + cases, wrong


def show(what: str, count: int, more: str) -> None:
    """Print one line of the table."""
    sys.stdout.write(f"{what:32}{count:>8,}  {more}\n")
    sys.stdout.flush()


def main() -> int:
    """Run it all; returns the exit code."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--inputs", type=int, default=6000, help="for each of the four readers")
    words.add_argument("--requests", type=int, default=8000, help="as bytes, for each loop")
    words.add_argument("--seconds", type=int, default=45, help="of Schemathesis, for each loop")
    words.add_argument("--seed", type=int, default=1)
    given = words.parse_args()
    total, wrong = 0, []
    for name in READERS:
        count = fuzz(name, given.inputs, given.seed)
        show(name, count, "")
        total += count
    for loop in ("uvloop", "trio"):
        count, faults = service(loop, given.requests, given.seconds, given.seed)
        total += count
        wrong += [f"{loop}: {fault}" for fault in faults]
    show("in all", total, "; ".join(wrong) or "no answer of 500, no traceback, no worker lost")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
