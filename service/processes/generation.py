"""A generation: imports the application once, forks the API workers from it, and replaces those that end.

It forks before any thread, pool or loop exists, so all workers share its pages. SIGTERM asks it to leave behind a newer
generation: its workers finish what their clients have begun. SIGUSR2 is the final stop: they drain first.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loguru import logger

from service.processes.spawn import fork, set_title
from service.processes.watch import BEAT, BEAT_SECONDS, READY, RECYCLE, Backoff, Child, Watch, report

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    Serve = Callable[[str, int], int]  # runs in a forked worker: its name, the pipe to report on; returns the exit code

LEAVE, STOP = signal.SIGTERM, signal.SIGUSR2


@dataclass(slots=True, eq=False)
class Slot:
    """One API worker to keep running, and the one that replaces it when it asks for that."""

    name: str
    worker: Child | None = None
    successor: Child | None = None
    backoff: Backoff = field(default_factory=Backoff)
    due: float = 0.0  # when one may be started again
    worn: bool = False  # whether it has asked to be replaced

    def children(self) -> list[Child]:
        """Return the running ones."""
        return [child for child in (self.worker, self.successor) if child is not None]


class Generation:
    """Keeps the workers running until it is told to leave; `pipe` is where it reports to the supervisor."""

    def __init__(  # noqa: PLR0913 - by name
        self, workers: int, serve: Serve, pipe: int, listener: socket.socket, *, grace: float, drain: float
    ) -> None:
        self._slots = [Slot(f"api-{number}") for number in range(1, workers + 1)]
        self._serve = serve
        self._pipe = pipe
        self._listener = listener
        self._grace = grace
        self._drain = drain
        self._leaving = self._announced = self._failed = False
        self._retired: list[Child] = []  # replaced workers that finish what was begun
        self._beat_due = 0.0

    def run(self) -> int:
        """Serve until told to leave and every worker has ended; return 0, or 1 if not all workers could start."""
        gc.collect()
        gc.freeze()  # what is shared now stays shared: the collector would write to its pages
        self._watch = Watch(LEAVE, STOP, signal.SIGINT, signal.SIGHUP)
        while not self._leaving or self._running():
            if not self._leaving:
                self._fill()
            for number in self._watch.wait(self._reported):
                if number in {LEAVE, STOP}:
                    self._leave(number)
            for pid, code in self._watch.ended():
                self._ended(pid, code)
            self._kill_overdue()
            if time.monotonic() >= self._beat_due:
                self._beat_due = time.monotonic() + BEAT_SECONDS
                report(self._pipe, BEAT)
        return int(self._failed)

    def _running(self) -> list[Child]:
        return [*(child for slot in self._slots for child in slot.children()), *self._retired]

    def _fill(self) -> None:
        """Start what is missing and due."""
        for slot in self._slots:
            if slot.worker is None and slot.successor is not None:
                slot.worker, slot.successor, slot.worn = slot.successor, None, False
            if time.monotonic() < slot.due:
                continue
            if slot.worker is None:
                slot.worker, slot.worn = self._start(slot.name), False
            elif slot.worn and slot.successor is None:
                slot.successor = self._start(slot.name)

    def _start(self, name: str) -> Child:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        pid = fork(lambda: self._work(name, reading, writing))
        os.close(writing)
        child = Child(name, pid, reading)
        self._watch.add(child)
        return child

    def _work(self, name: str, reading: int, writing: int) -> int:
        os.close(reading)
        set_title(f"api worker {name.removeprefix('api-')}")
        return self._serve(name, writing)

    def _reported(self, child: Child, word: str) -> None:
        """Follow a worker's report."""
        slot = next((slot for slot in self._slots if child in slot.children()), None)
        if slot is None or self._leaving:
            return
        if word == RECYCLE:
            slot.worn = True
        if word == READY:
            logger.info("started", child=child.name, pid=child.pid)
            if child is slot.successor and slot.worker is not None:
                slot.worker.stop(LEAVE, self._grace)
                self._retired.append(slot.worker)
                slot.worker, slot.successor, slot.worn = child, None, False
            if not self._announced and all(slot.worker is not None and slot.worker.ready for slot in self._slots):
                self._announced = True
                report(self._pipe, READY)

    def _ended(self, pid: int, code: int) -> None:
        """Take note of a worker that has ended; one that nobody has asked to is started again."""
        child = next((child for child in self._running() if child.pid == pid), None)
        if child is None:
            return
        child.sweep()
        self._watch.remove(child)
        if not child.leaving:
            logger.warning("ended", child=child.name, pid=pid, code=code)
        if child in self._retired:
            self._retired.remove(child)
            return
        slot = next(slot for slot in self._slots if child in slot.children())
        if child is slot.successor:
            slot.successor = None
        else:
            slot.worker = None
        slot.due = time.monotonic() + slot.backoff.delay(time.monotonic() - child.started)
        if not self._announced and not self._leaving:  # new code that does not start is not for us to try again
            self._failed = True
            self._leave(LEAVE)

    def _leave(self, number: int) -> None:
        self._leaving = True
        self._listener.close()  # of which the workers have their own copies
        seconds = self._grace + (self._drain if number == STOP else 0)
        for child in self._running():
            child.stop(number, seconds)

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for child in self._running():
            if why := child.overdue(now):
                logger.error("killed", child=child.name, pid=child.pid, reason=why)
                child.kill()
