"""Waits for what another process does, for as long as was promised."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_SECONDS = 0.02


def wait_for(true: Callable[[], object], what: str, promised: float = 20.0) -> float:
    """Wait until it is true and return the seconds it took; fails when it is not within what was promised."""
    began, seconds = time.monotonic(), promised * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    pause = threading.Event()
    while not true():
        passed = time.monotonic() - began
        assert passed < seconds, f"not within {seconds:.1f} s: {what}"
        pause.wait(LOOK_SECONDS)
    return time.monotonic() - began


def alive(pid: int) -> bool:
    """Return whether a process runs; one that waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
