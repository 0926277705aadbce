"""Waits for what another process does, for as long as was promised."""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_SECONDS = 0.02  # between looks at what tells no event


def wait_for(true: Callable[[], object], what: str, promised: float = 20.0) -> float:
    """Wait until it is true and return the seconds it took; fails when it is not within what was promised."""
    began, pause = time.monotonic(), threading.Event()
    while not true():
        seconds = patience(promised)  # looked at again and again: a wait may see the load come
        assert time.monotonic() - began < seconds, f"not within {seconds:.1f} s: {what}"
        pause.wait(LOOK_SECONDS)
    return time.monotonic() - began


async def until(true: Callable[[], object], promised: float = 20.0) -> None:
    """Wait on a loop until it is true: for what tells no event."""
    with anyio.fail_after(patience(promised)):
        while not true():  # noqa: ASYNC110 - processes and threads tell no event
            await anyio.sleep(LOOK_SECONDS / 2)


def alive(pid: int) -> bool:
    """Return whether a process runs; one that waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def patience(promised: float) -> float:
    """Return the seconds to grant a promise: as promised, and in proportion more on a machine with too much to do."""
    return promised * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


ROLES = {
    "postgres": re.compile(r"/bin/postgres "),
    "postgres, still in Python": re.compile(r" server postgres "),
    "redis": re.compile(r"valkey-server"),
    "catcher": re.compile(r"mail_catcher"),
    "mail worker": re.compile(r"^vestibule mail worker"),
}


def child(supervisor: int, role: str) -> int:
    """Return the pid of a supervisor's child that plays this role, 0 if there is none."""
    for process in psutil.Process(supervisor).children():
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE and ROLES[role].search(" ".join(process.cmdline()) + " "):
                return process.pid
    return 0


def titled(supervisor: int, title: str) -> list[int]:
    """Return the pids below a supervisor whose process title begins so: `api worker`, `mail worker`, `generation`."""
    found = []
    for process in psutil.Process(supervisor).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            running = process.status() != psutil.STATUS_ZOMBIE
            if running and " ".join(process.cmdline()).startswith(f"vestibule {title}"):
                found.append(process.pid)
    return sorted(found)
