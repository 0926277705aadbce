"""Starts, signals and watches the programs that tests run; each dies with the test process, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

from tests.servers.waiting import LOOK_SECONDS, alive, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}


def wheel(module: str, pattern: str) -> Path:
    """Return a program of an installed wheel, without importing it."""
    spec = find_spec(module)
    assert spec is not None, f"{module} is not installed"
    return next(found for place in spec.submodule_search_locations or () for found in Path(place).glob(pattern))


class Server:
    """A program with a folder of its own; the context ends it, in whatever state it is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it."""
        self.kill()

    def start(self) -> None:
        """Start it and wait until it is ready."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Return whether it answers."""
        raise NotImplementedError

    def run(self, argv: Sequence[str], before: Sequence[str] = (), death: str = "KILL") -> None:
        """Run it in a session of its own, until ready; `before` is a command around it, `death` the signal at ours.

        Call it from the main thread: the kernel sends the signal when the thread that forked ends.
        """
        log = self._folder / "log"
        with log.open("ab") as output:
            self._process = process = subprocess.Popen(
                [*before, "setpriv", "--pdeathsig", death, "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT,
                start_new_session=True,
            )
        wait_for(lambda: process.poll() is not None or self.ready(), f"{argv[0]} is ready", 30.0)
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]

    def kill(self) -> None:
        """Kill it and its processes with -9."""
        if self._process is not None:
            kill(self._process)

    def stall(self) -> None:
        """Stop all its processes: connections stay open, new ones open too, and nothing is answered."""
        assert self._process is not None
        send_all(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on, with what they were sent meanwhile."""
        assert self._process is not None
        send_all(self._process.pid, signal.SIGCONT)


def send(pid: int, number: int) -> None:
    """Signal the process; 0, which a look-up in vain may give, would be the whole group that the tests run in."""
    assert pid > 0, "there is no such process"
    os.kill(pid, number)


def send_all(pid: int, number: signal.Signals) -> None:
    """Signal a process and all below it, itself first: it would start others for those that end."""
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and all below it with -9, whether it runs, is stopped or has ended."""
    if process.poll() is None:
        send_all(process.pid, signal.SIGKILL)
        process.wait()


def still_there(pids: Iterable[int], timeout: float) -> list[int]:
    """Wait for processes to end, ours or not, and return those that have not ended in time."""
    left, until = list(pids), time.monotonic() + timeout
    while (left := [pid for pid in left if alive(pid)]) and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)  # other processes, which tell no event
    return left
