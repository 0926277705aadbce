"""The terminal that a master was started on: whoever closes it wants the service to stop, and SIGHUP says so."""

from __future__ import annotations

import os
import select
import signal
import time

PATH = "/dev/tty"
FRESH_SECONDS = 5.0  # a shell passes the news on at once; a SIGHUP that comes later is somebody's `vestibule reload`


class Terminal:
    """Tells a SIGHUP that follows the loss of the terminal from one that asks for a reload.

    Holds the terminal open, by the descriptor, and without one (under nohup, setsid or a service manager) is never
    lost. A job that was disowned outlives its terminal unsignalled: such a loss is soon forgotten.
    """

    def __init__(self, descriptor: int | None) -> None:
        self.descriptor = descriptor
        self._lost_at: float | None = None

    @classmethod
    def controlling(cls) -> Terminal:
        """Open the controlling terminal, if there is one and SIGHUP was not ignored by whoever started us."""
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            return cls(None)
        try:
            return cls(os.open(PATH, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        except OSError:
            return cls(None)

    def look(self, now: float) -> bool:
        """Return whether the terminal has been lost a moment ago; call it now and then, so that moments are noticed."""
        if self.descriptor is None:
            return False
        hung = select.poll()
        hung.register(self.descriptor, 0)  # nothing but the hang-up, which cannot be masked
        if not hung.poll(0):
            return False
        self._lost_at = now if self._lost_at is None else self._lost_at
        if now - self._lost_at <= FRESH_SECONDS:
            return True
        os.close(self.descriptor)
        self.descriptor = None
        return False

    def interrupt(self, *_: object) -> None:
        """Handle a SIGHUP during the start: raise KeyboardInterrupt if the terminal is lost, else do nothing."""
        if self.look(time.monotonic()):
            raise KeyboardInterrupt
