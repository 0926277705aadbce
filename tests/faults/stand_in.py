"""A service without servers, under the real supervisor, generation and worker: `python stand_in.py up`.

Its settings are bad while the version is `bad`, its plan is of another version while that is `newer`. The mail workers,
and the one server of `up`, do nothing; the former do not even end while the version is `stubborn`. The application is
in stand_in_app.py, which the supervisor never imports.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from service.processes.children import BEAT, BEAT_SECONDS, READY, report
from service.processes.listener import CannotStart
from service.processes.spawn import set_title
from service.processes.supervisor import VERSION, Supervisor


def version() -> str:
    """Return what the test wishes the code to be."""
    return Path(os.environ["STAND_IN_FOLDER"], "version").read_text(encoding="utf-8").strip()


def plan(mode: str) -> None:
    """Print the supervisor's plan."""
    if version() == "bad":
        sys.exit("vestibule: VESTIBULE_CODE_DIGITS is wrong")
    values = {
        "version": VERSION + 1 if version() == "newer" else VERSION,
        "bind": os.environ["VESTIBULE_BIND"],
        "data_dir": os.environ["VESTIBULE_DATA_DIR"],
        "grace": float(os.environ.get("VESTIBULE_GRACE_SECONDS", "20")),
        "drain": float(os.environ.get("VESTIBULE_DRAIN_SECONDS", "0")),
        "mail_workers": int(os.environ.get("VESTIBULE_MAIL_WORKERS", "0")),
        "servers": [("sleeper", int(signal.SIGTERM))] if mode == "up" else [],
        "log_level": "INFO",
        "log_format": "json",
        "guide": [],
    }
    sys.stdout.write(json.dumps(values))


def mail_worker(pipe: int) -> None:
    """Beat until SIGTERM, which is waited for: raised out of a handler, it also cut off what coverage does at exit."""
    set_title("mail worker")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    report(pipe, READY)
    told = None
    while not told or version() == "stubborn":
        report(pipe, BEAT)
        told = signal.sigtimedwait({signal.SIGTERM}, BEAT_SECONDS)


def main() -> int:
    """Play the console command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="+")
    parser.add_argument("--supervised", action="store_true")
    for name in ("--number", "--listener", "--pipe"):
        parser.add_argument(name, type=int)
    given = parser.parse_args()
    match given.words:
        case ["plan", mode, *_]:
            plan(mode)
        case ["generation"]:
            from stand_in_app import (  # type: ignore[import-not-found]  # noqa: PLC0415 - a script beside this one
                generation,
            )

            generation(given.number, given.listener, given.pipe)
        case ["worker"]:
            mail_worker(given.pipe)
        case ["server", _]:
            os.execvp("sleep", ["sleep", "1000"])  # noqa: S606 - a stand-in
        case [mode]:
            program = [sys.executable, __file__]
            try:
                return Supervisor(mode, lambda *words: [*program, *words]).run()
            except CannotStart as refusal:
                sys.exit(f"vestibule: {refusal}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
