"""The master: keeps every process of one machine running, replaces them one by one, and ends them in order.

A plain synchronous program of one thread: `select`, signals through a wake-up descriptor, and a roster of children.
It holds no loop, pool or thread, so that it can fork API workers at any time.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING, Protocol

from loguru import logger

from service.children import reap
from service.listener import forget
from service.roster import Roster

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.children import Child, Post
    from service.terminal import Terminal

TRIAL_SECONDS = 120.0  # a migration may wait a minute for another one
TICK = 0.2  # the clock of time-outs and of delayed starts; signals and messages wake the master at once
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


class Renewal(Protocol):
    """How new code and settings are tried and taken."""

    def check(self) -> int:
        """Start a process that exits with 0 if a reload would work; return its pid."""

    def refusal(self) -> str:
        """Return the one line that the ended trial said."""

    def take(self, listener: socket.socket, children: Sequence[Child]) -> None:
        """Execute the new code in this process; returns only if that is impossible."""


class Master:
    """Runs posts until SIGTERM or SIGINT; `run` returns the exit code after the last child has ended.

    SIGHUP tries the new code and takes it, through `renewal`; the listening socket and the children go with it.
    With the `terminal` lost it is a stop as well.
    `announce` is called once, when every post has a child that is ready.
    """

    def __init__(  # noqa: PLR0913 - what a master needs; half of it by name
        self,
        posts: Sequence[Post],
        listener: socket.socket,
        renewal: Renewal,
        *,
        drain: float,
        announce: Callable[[], None],
        terminal: Terminal,
        strangers: Sequence[Child] = (),
    ) -> None:
        self._selector = selectors.DefaultSelector()
        self._roster = Roster(posts, self._selector, strangers)
        self._listener = listener
        self._renewal = renewal
        self._drain = drain
        self._announce: Callable[[], None] | None = announce
        self._terminal = terminal
        self._trial: int | None = None
        self._trial_ends = 0.0
        self._again = False  # asked to reload while a trial was running
        self._closes_at: float | None = None
        self._tiers = self._roster.tiers()
        self._ending = False

    def run(self) -> int:
        """Keep the posts filled; returns 0 after an orderly stop."""
        self._inward, self._outward = socket.socketpair()
        self._inward.settimeout(0)
        self._outward.settimeout(0)
        signal.set_wakeup_fd(self._outward.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        self._selector.register(self._inward, selectors.EVENT_READ, self._signalled)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            self._keep()
        finally:
            signal.set_wakeup_fd(-1)  # a late signal must not be written to what our sockets' numbers mean then
        return 0

    def _keep(self) -> None:
        while not self._stopped(time.monotonic()):
            self._terminal.look(time.monotonic())
            self._roster.fill(time.monotonic())
            for key, _ in self._selector.select(TICK):
                key.data()
            self._bury()
            self._roster.kill_overdue(time.monotonic())
            if self._trial is not None and time.monotonic() > self._trial_ends:
                os.kill(self._trial, signal.SIGKILL)
            if self._announce is not None and self._closes_at is None and self._roster.complete():
                announce, self._announce = self._announce, None
                announce()

    def _signalled(self) -> None:
        for number in self._inward.recv(4096):
            if number == signal.SIGHUP and not self._terminal.look(time.monotonic()):
                self._reload()
            elif number != signal.SIGCHLD and self._closes_at is None:
                self._closes_at = time.monotonic() + self._drain
                logger.info("stopping", signal=signal.Signals(number).name, drain_seconds=self._drain)
                self._roster.drain()

    def _bury(self) -> None:
        """Take note of all who have ended, and only then of what the trial says: a reload hands over who is alive."""
        verdict: int | None = None
        for pid, code in reap():
            if pid == self._trial:
                self._trial, verdict = None, code
            else:
                self._roster.fallen(pid, code, time.monotonic())
        if verdict is not None:
            self._judge(verdict)

    def _stopped(self, now: float) -> bool:
        """Take the next step of an orderly stop; True when nothing is left."""
        if self._closes_at is None or now < self._closes_at:
            return False
        if not self._ending:
            self._ending = True
            forget(self._listener)
            self._roster.end(self._tiers[0])
        while self._tiers and not self._roster.alive(self._tiers[0]):
            self._tiers.pop(0)
            if self._tiers:
                self._roster.end(self._tiers[0])
        return not self._tiers

    def _reload(self) -> None:
        """Try the new code and settings in a child; `_judge` goes on when it has ended."""
        if self._closes_at is not None:
            return
        if self._trial is not None:
            self._again = True
            return
        logger.info("reload asked for")
        try:
            self._trial = self._renewal.check()
            self._trial_ends = time.monotonic() + TRIAL_SECONDS
        except OSError as error:
            logger.error("reload refused, the old configuration stays", reason=error.strerror)

    def _judge(self, code: int) -> None:
        if self._again:
            self._again = False
            self._reload()
        elif code != 0:
            logger.error("reload refused, the old configuration stays", reason=self._renewal.refusal())
        elif self._closes_at is None:
            self._renewal.take(self._listener, list(self._roster.children()))
