"""Starts and ends embedded servers for tests that kill them, and waits for ends without sleeping."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from service.embedded.launcher import ended, stop

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from service.embedded.launcher import ServerProcess

PATIENCE = 10.0
PROGRAM = (sys.executable, "-m", "tests.servers.up_program")


@contextmanager
def served(server: ServerProcess) -> Iterator[int]:
    """Run a server for the body, which may end it itself."""
    pid = server.start()
    try:
        server.wait_ready(pid)
        yield pid
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            if not ended(pid):
                stop(pid, server.stop_signal)


def kill(pid: int) -> None:
    """Kill a child and wait for it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@contextmanager
def up_program(data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    """Run a program that has started every embedded server in `data_dir`; give it and their pids."""
    with subprocess.Popen([*PROGRAM, str(data_dir), "stay"], stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            yield program, json.loads(program.stdout.readline())
        finally:
            program.kill()


def up_once(data_dir: Path, around: Sequence[str] = ()) -> tuple[int, str]:
    """Start every embedded server in `data_dir` and stop it again; return the exit code and all that was said."""
    done = subprocess.run(
        [*around, *PROGRAM, str(data_dir)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout.strip()


def still_there(pids: Iterable[int], timeout: float) -> list[int]:
    """Wait for processes of others to end and return those that have not done so in time."""
    poll = select.poll()
    watched = {}
    for pid in pids:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            watched[descriptor] = pid
            poll.register(descriptor, select.POLLIN)
    while watched:
        events = poll.poll(timeout * 1000)
        if not events:
            break
        for descriptor, _ in events:
            poll.unregister(descriptor)
            os.close(descriptor)
            del watched[descriptor]
    return list(watched.values())
