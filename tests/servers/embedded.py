"""Runs the embedded servers of the product for tests that kill them."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from service.embedded.launcher import ended
from service.processes.spawn import fork

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.embedded.launcher import ServerProcess


def start(server: ServerProcess) -> int:
    """Start a server as the supervisor does: as a child that dies with us."""
    us = os.getpid()
    return fork(lambda: server.become(us))


@contextmanager
def served(server: ServerProcess) -> Iterator[int]:
    """Run a server for the body, which may end it itself; give its pid."""
    pid = start(server)
    try:
        server.wait_ready(pid)
        yield pid
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            if not ended(pid):
                os.kill(pid, server.stop_signal)
            os.waitpid(pid, 0)


def kill(pid: int) -> None:
    """Kill a child and wait for it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
