"""What the supervisor and a generation share: child processes that report on pipes, and signals as events.

A child writes lines to its pipe: `1 ready` once, `1 beat` every second, `1 recycle` when it wants to be replaced. The
number is the version of this protocol; a line of another version is ignored.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROTOCOL = "1"
READY, BEAT, RECYCLE = "ready", "beat", "recycle"
BEAT_SECONDS = 1.0
SILENT_SECONDS = 8.0  # a loop that shows no life for so long never answers again
START_SECONDS = 60.0  # to become ready
TICK_SECONDS = 0.2  # the clock of time-outs and of delayed starts; signals and reports wake at once
KILL_SECONDS = 2.0  # beyond the grace a child has for its last words
QUICK_SECONDS = 10.0  # a child that ended sooner than this counts towards a crash loop
FREE_TRIES, FIRST_DELAY, LONGEST_DELAY = 2, 0.2, 15.0  # a kill and a second one at once are no loop


@dataclass(slots=True, eq=False)
class Child:
    """A running process; `reports` is the reading end of its pipe, None for one that reports nothing."""

    name: str
    pid: int
    reports: int | None = None
    started: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    ready: bool = False
    deadline: float | None = None  # of a child that was asked to end
    killed: bool = False
    rest: bytes = b""

    @property
    def leaving(self) -> bool:
        """Whether it was asked to end."""
        return self.deadline is not None

    def stop(self, number: int, seconds: float) -> None:
        """Ask it to end within so many seconds."""
        self.deadline = time.monotonic() + seconds + KILL_SECONDS
        self.signal(number)

    def signal(self, number: int) -> None:
        """Signal it; one that is gone already is no error."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it and its process group at once."""
        self.killed = True
        self.signal(signal.SIGKILL)
        self.sweep()

    def sweep(self) -> None:
        """End what is left in its process group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def overdue(self, now: float) -> str | None:
        """Return why it must be killed now, or None."""
        if self.killed:
            return None
        if self.deadline is not None:
            return "did not end in time" if now > self.deadline else None
        if self.reports is None and not suspended(self.pid):
            self.heard = now  # it reports nothing, but it runs
        if not self.ready:
            return "was not ready in time" if now - self.started > START_SECONDS else None
        return "shows no sign of life" if now - self.heard > SILENT_SECONDS else None


@dataclass(slots=True)
class Backoff:
    """How long to wait before the next start: not at all for a kill now and then, ever longer in a crash loop."""

    ends: int = 0

    def delay(self, lived: float) -> float:
        """Count one end after so many seconds of life and return the seconds to wait."""
        self.ends = self.ends + 1 if lived < QUICK_SECONDS else 1
        beyond = self.ends - FREE_TRIES
        return 0.0 if beyond <= 0 else min(FIRST_DELAY * 2 ** min(beyond - 1, 10), LONGEST_DELAY)


class Watch:
    """Waits for signals and for lines of children, in one thread without a loop, so that it can fork at any time."""

    def __init__(self, *signals: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._wakeup, outward = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(outward, warn_on_full_buffer=False)
        for number in (*signals, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._children: dict[int, Child] = {}

    def add(self, child: Child) -> None:
        """Listen to a child's reports."""
        if child.reports is not None:
            os.set_blocking(child.reports, False)
            self._children[child.reports] = child
            self._selector.register(child.reports, selectors.EVENT_READ)

    def remove(self, child: Child) -> None:
        """Listen no longer to a child that has ended."""
        if child.reports is not None and self._children.get(child.reports) is child:  # numbers are used again
            del self._children[child.reports]
            self._selector.unregister(child.reports)
            os.close(child.reports)

    def wait(self, reported: Callable[[Child, str], None] = lambda _, __: None) -> list[int]:
        """Wait for a tick at most; hand every line of a child to `reported`, and return the signals that came."""
        signals: list[int] = []
        for key, _ in self._selector.select(TICK_SECONDS):
            if key.fd == self._wakeup:
                signals += os.read(self._wakeup, 4096)
            else:
                child = self._children[key.fd]
                for word in self._words(child, key.fd):
                    reported(child, word)
        return [number for number in signals if number != signal.SIGCHLD]

    def _words(self, child: Child, pipe: int) -> list[str]:
        data = os.read(pipe, 4096)
        if not data:
            self.remove(child)  # it has ended; its exit code says how
            return []
        child.heard = time.monotonic()
        *lines, child.rest = (child.rest + data).split(b"\n")
        parts = [line.decode("ascii", "replace").partition(" ") for line in lines]
        words = [word for version, _, word in parts if version == PROTOCOL]
        child.ready = child.ready or READY in words
        return words

    @staticmethod
    def ended() -> Iterator[tuple[int, int]]:
        """Yield every ended child without waiting: its pid and exit code, negative for a signal."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            yield pid, os.waitstatus_to_exitcode(status)


def suspended(pid: int) -> bool:
    """Return whether a process is stopped, as by SIGSTOP (proc(5): the state follows the name in brackets)."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in {b"T", b"t"}
    except OSError:
        return False


def report(pipe: int, word: str) -> None:
    """Write one line to the parent; one that does not read loses it, and one that is gone takes us with it."""
    with suppress(OSError):
        os.write(pipe, f"{PROTOCOL} {word}\n".encode())
