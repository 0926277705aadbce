"""What the supervisor has to do with the console: its lines in the log, and the terminal that it was started on."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from contextlib import suppress

TERMINAL_SECONDS = 5.0  # a shell passes the loss of its terminal on at once; a later SIGHUP is a reload
LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}


class Terminal:
    """Tells a SIGHUP that follows the loss of the terminal, which is a stop, from one that asks for a reload.

    Without a terminal (under nohup, setsid or a service manager) it is never lost.
    """

    def __init__(self) -> None:
        self._lost_at: float | None = None
        self._descriptor: int | None = None
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            with suppress(OSError):
                self._descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)

    def lost(self) -> bool:
        """Return whether the terminal was lost a moment ago; call it now and then, so that moments are noticed."""
        if self._descriptor is None:
            return False
        hung = select.poll()
        hung.register(self._descriptor, 0)  # nothing but the hang-up, which cannot be masked
        if not hung.poll(0):
            return False
        now = time.monotonic()
        self._lost_at = now if self._lost_at is None else self._lost_at
        if now - self._lost_at > TERMINAL_SECONDS:
            os.close(self._descriptor)
            self._descriptor = None
        return self._descriptor is not None


class Log:
    """Writes the supervisor's own lines, in the format that every process writes."""

    def __init__(self, form: str, level: str) -> None:
        self._json = form == "json"
        self._level = LEVELS.get(level, 20)

    def write(self, level: str, message: str, **extras: object) -> None:
        """Write one line to stdout; a reader that does not take it loses it."""
        if LEVELS[level] < self._level:
            return
        now = time.time()
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03}Z"
        if self._json:
            line = json.dumps({"time": clock, "level": level, "message": message, "worker": "supervisor", **extras})
        else:
            shown = "".join(f"  {name}={json.dumps(value)}" for name, value in extras.items())
            line = f"{clock[11:23]} {level:<8}supervisor {message}{shown}"
        _, writable, _ = select.select((), (1,), (), 0)
        if writable:
            with suppress(OSError):
                os.write(1, line.encode() + b"\n")
