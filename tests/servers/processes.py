"""Starts, signals and watches the programs that tests run; each dies with the test process, however that ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

LOOK_SECONDS = 0.01
ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}


def wheel(module: str, pattern: str) -> Path:
    """Return a program of an installed wheel, without importing it."""
    spec = find_spec(module)
    assert spec is not None, f"{module} is not installed"
    return next(found for place in spec.submodule_search_locations or () for found in Path(place).glob(pattern))


def start(argv: Sequence[str], log: Path, before: Sequence[str] = (), death: str = "KILL") -> subprocess.Popen[bytes]:
    """Start a program in a session of its own; `before` is a command around it, `death` the signal of our death.

    Call it from the main thread: the kernel sends the signal when the thread that forked ends.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [*before, "setpriv", "--pdeathsig", death, "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
            start_new_session=True,
        )


def wait_ready(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path, timeout: float = 30.0) -> None:
    """Return once the program is ready; fails the test when it ends, or not in time."""
    until = time.monotonic() + timeout
    while not ready():
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        assert time.monotonic() < until, log.read_text(errors="replace")[-2000:]
        time.sleep(LOOK_SECONDS)  # another process, which tells no event


def send(pid: int, number: int) -> None:
    """Signal the process; 0, which a look-up in vain may give, would be the whole group that the tests run in."""
    assert pid > 0, "there is no such process"
    os.kill(pid, number)


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all below it, itself first: it would start others for those that end."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def send_all(pid: int, number: signal.Signals) -> None:
    """Signal a process and all below it."""
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and all below it with -9, whether it runs, is stopped or has ended."""
    if process.poll() is None:
        send_all(process.pid, signal.SIGKILL)
        process.wait()


def still_there(pids: Iterable[int], timeout: float) -> list[int]:
    """Wait for processes to end, ours or not, and return those that have not ended in time."""
    poll = select.poll()
    watched: dict[int, int] = {}
    for pid in pids:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            watched[descriptor] = pid
            poll.register(descriptor, select.POLLIN)
    until = time.monotonic() + timeout
    while watched:
        events = poll.poll(max(0.0, until - time.monotonic()) * 1000)
        if not events:
            break
        for descriptor, _ in events:
            poll.unregister(descriptor)
            os.close(descriptor)
            del watched[descriptor]
    for descriptor in watched:
        os.close(descriptor)
    return list(watched.values())
