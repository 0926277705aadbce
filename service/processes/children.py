"""What the supervisor and a generation share: services whose processes are started, watched, replaced and stopped.

A child reports single bytes on its pipe: READY once, BEAT every second, RECYCLE when it wants to be replaced. A byte of
another version is a sign of life and nothing more.
"""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.processes.spawn import fork

if TYPE_CHECKING:
    from collections.abc import Callable

READY, BEAT, RECYCLE = b"r", b"b", b"c"
LEAVE, STOP = signal.SIGTERM, signal.SIGUSR2  # to API processes: others take over, and the final stop
SIGNALS = frozenset({signal.SIGHUP, signal.SIGINT, LEAVE, STOP, signal.SIGCHLD})
BEAT_SECONDS = 1.0  # several may come late before SILENT_SECONDS are over
SILENT_SECONDS = 8.0  # a loop that shows no life for so long never answers again
START_SECONDS = 60.0  # to become ready
TICK_SECONDS = 0.1  # between looks at the children's reports; signals wake at once
KILL_SECONDS = 2.0  # beyond the grace a child has for its last words
QUICK_SECONDS = 10.0  # a child that ended sooner than this counts towards a crash loop
FREE_TRIES, FIRST_DELAY, LONGEST_DELAY = 2, 0.2, 15.0  # a kill and a second one at once are no loop


@dataclass(slots=True, eq=False)
class Child:
    """A running process; `pipe` is the end that we read, `reports` whether it reports on it."""

    name: str
    pid: int
    pipe: int
    reports: bool = True
    patience: float = START_SECONDS  # until it is ready
    ready: bool = False
    started: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    deadline: float | None = None  # of a child that was asked to end
    killed: bool = False

    @property
    def leaving(self) -> bool:
        """Whether it was asked to end."""
        return self.deadline is not None

    def read(self) -> bytes:
        """Return what it has written since the last look."""
        try:
            data = os.read(self.pipe, 65_536)
        except BlockingIOError:
            return b""
        if data:
            self.heard = time.monotonic()
        return data

    def stop(self, number: int, seconds: float) -> None:
        """Ask it to end within so many seconds."""
        self.deadline = time.monotonic() + seconds + KILL_SECONDS
        self.signal(number)

    def signal(self, number: int) -> None:
        """Signal it; one that is gone already is no error."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once; what it has started dies with it."""
        self.killed = True
        self.signal(signal.SIGKILL)

    def overdue(self) -> str | None:
        """Return why it must be killed now, or None."""
        now = time.monotonic()
        if self.killed:
            return None
        if self.deadline is not None:
            return "did not end in time" if now > self.deadline else None
        if not self.ready:
            return "was not ready in time" if now > self.started + self.patience else None
        return "shows no sign of life" if self.reports and now > self.heard + SILENT_SECONDS else None


@dataclass(slots=True, eq=False)
class Service:
    """One process to keep running, and the one that is to replace it.

    The supervisor has services of several tiers, which stop one after the other, the lowest first.
    """

    name: str
    grace: float  # seconds to end in
    words: tuple[str, ...] = ()  # of its command line, unless it is forked
    tier: int = 0
    stop_signal: int = LEAVE
    child: Child | None = None
    successor: Child | None = None
    renew: bool = False  # whether a successor is wanted
    due: float = 0.0  # when a process may be started again
    ends: int = 0  # in a row, each soon after the start

    def children(self) -> list[Child]:
        """Return the running ones."""
        return [child for child in (self.child, self.successor) if child is not None]

    def ready(self) -> bool:
        """Return whether the newest one is ready."""
        return bool(self.children()) and self.children()[-1].ready

    def lose(self, child: Child) -> None:
        """Take note that one has ended; the next start is at once after a kill now and then, ever later in a loop."""
        if child is self.successor:
            self.successor = None
        else:
            self.child, self.successor, self.renew = self.successor, None, False
        now = time.monotonic()
        self.ends = self.ends + 1 if now < child.started + QUICK_SECONDS else 1
        beyond = self.ends - FREE_TRIES
        self.due = now if beyond <= 0 else now + min(FIRST_DELAY * 2 ** min(beyond - 1, 10), LONGEST_DELAY)


class Processes(ABC):
    """Keeps services running, in one thread without a loop, so that it can fork at any time."""

    def __init__(self) -> None:
        self.services: list[Service] = []
        self.others: list[Child] = []  # of no service: above all, replaced ones that finish what was begun
        self.stopping = False
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    @abstractmethod
    def start(self, service: Service) -> Child:
        """Start one more process of a service."""

    @abstractmethod
    def told(self, signalled: signal.struct_siginfo) -> None:
        """Act on a signal."""

    @abstractmethod
    def log(self, level: str, message: str, **extras: object) -> None:
        """Write a line."""

    def children(self) -> list[Child]:
        """Return all that run."""
        return [*(child for service in self.services for child in service.children()), *self.others]

    def turn(self) -> None:
        """Wait for a moment at most, and take note of what has happened."""
        signalled = signal.sigtimedwait(SIGNALS, TICK_SECONDS)
        if signalled is not None and signalled.si_signo != signal.SIGCHLD:
            self.told(signalled)
        for service in self.services:
            for child in service.children():
                self._follow(child, service)
        for child in self.children():
            if why := child.overdue():
                self.log("ERROR", "killed", child=child.name, pid=child.pid, reason=why)
                child.kill()
        self._reap()

    def fill(self) -> None:
        """Start what is missing and due."""
        for service in self.services:
            if time.monotonic() < service.due:
                continue
            if service.child is None:
                service.child = self.start(service)
            elif service.renew and service.successor is None:
                service.successor = self.start(service)

    def launch(self, name: str, body: Callable[[int], int], *, reports: bool = True) -> Child:
        """Fork a child that runs `body` with the writing end of its pipe."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        pid = fork(lambda: body(writing))
        os.close(writing)
        return Child(name, pid, reading, reports)

    def let_go(self, child: Child, grace: float) -> None:
        """Have one that is not needed any more finish what it has begun."""
        child.stop(LEAVE, grace)
        self.others.append(child)

    def replace(self, service: Service) -> None:
        """Let the successor take over, if there is one."""
        if service.successor is not None:
            if service.child is not None:
                self.let_go(service.child, service.grace)
            service.child, service.successor, service.renew = service.successor, None, False

    def ended(self, child: Child, code: int) -> None:
        """Take note of a child that has ended."""
        os.close(child.pipe)
        self.log("INFO" if child.leaving else "WARNING", "ended", child=child.name, pid=child.pid, code=code)
        if child in self.others:
            self.others.remove(child)
        for service in self.services:
            if child in service.children():
                service.lose(child)

    def _follow(self, child: Child, service: Service) -> None:
        said = child.read() if child.reports else b""
        if READY in said and not child.ready:
            child.ready = True
            self.log("INFO", "started", child=child.name, pid=child.pid)
        if RECYCLE in said:
            service.renew = True

    def _reap(self) -> None:
        while children := self.children():
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            for child in children:
                if child.pid == pid:
                    self.ended(child, os.waitstatus_to_exitcode(status))


def report(pipe: int, word: bytes) -> None:
    """Tell the parent; one that does not read loses it, and one that is gone takes us with it."""
    with suppress(OSError):
        os.write(pipe, word)
