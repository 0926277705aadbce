"""The master: keeps every process of one machine running, replaces them one by one, and ends them in order.

A plain synchronous program of one thread: `select`, signals through a wake-up descriptor, and a book of children.
It holds no loop, pool or thread, so that it can fork API workers at any time.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from loguru import logger

from service.children import BEAT, DRAIN, READY, RETIRE, SUCCESSOR, Child, Post, reap
from service.listener import forget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TICK = 0.2  # the clock of time-outs and of delayed starts; signals and messages wake the master at once
STALL_SECONDS = 7.0  # a worker beats every second; a longer silence is a stuck loop or a stopped process
START_SECONDS = 60.0  # to become ready
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


class Renewal(Protocol):
    """How new code and settings are tried and taken: `check` starts a trial, `take` executes the new code."""

    def check(self) -> int:
        """Start a process that exits with 0 if a reload would work; return its pid."""

    def refusal(self) -> str:
        """Return the one line that the ended trial said."""

    def take(self, listener: socket.socket, children: Sequence[Child]) -> None:
        """Execute the new code in this process; returns only if that is impossible."""


class Master:
    """Runs posts until SIGTERM or SIGINT; `run` returns the exit code after the last child has ended.

    `announce` is called once, when every post has a ready child. SIGHUP goes to `renewal`. Posts that already have a
    child (after a reload) are replaced one by one; `strangers` are children without a post, which are sent away.
    """

    def __init__(
        self,
        posts: Sequence[Post],
        listener: socket.socket,
        *,
        drain: float,
        renewal: Renewal,
        announce: Callable[[], None],
        strangers: Sequence[Child] = (),
    ) -> None:
        self._posts = posts
        self._listener = listener
        self._drain = drain
        self._renewal = renewal
        self._announce: Callable[[], None] | None = announce
        self._leaving: list[tuple[Post | None, Child]] = []
        self._strangers = strangers
        self._rolling: deque[Post] = deque(post for post in posts if post.child is not None and post.renew)
        self._selector = selectors.DefaultSelector()
        self._trial: int | None = None
        self._again = False
        self._closes_at: float | None = None
        self._tiers: list[int] | None = None

    def run(self) -> int:
        """Keep the posts filled; returns 0 after an orderly stop."""
        self._listen_to_signals()
        now = time.monotonic()
        for child in self._strangers:
            self._dismiss(None, child, now)
        for post in self._posts:
            if post.child is not None:
                self._watch(post.child)
        while True:
            self._fill(time.monotonic())
            for key, _ in self._selector.select(TICK):
                key.data()
            now = time.monotonic()
            self._bury(now)
            self._kill_overdue(now)
            if self._stopped(now):
                return 0

    def _listen_to_signals(self) -> None:
        inward, outward = socket.socketpair()
        inward.setblocking(False)
        outward.setblocking(False)
        signal.set_wakeup_fd(outward.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._wakeup = (inward, outward)
        self._selector.register(inward, selectors.EVENT_READ, self._signalled)

    def _signalled(self) -> None:
        for number in self._wakeup[0].recv(4096):
            if number == signal.SIGHUP:
                self._reload()
            elif number in {signal.SIGTERM, signal.SIGINT} and self._closes_at is None:
                self._closes_at = time.monotonic() + self._drain
                logger.info("stopping", signal=signal.Signals(number).name, drain_seconds=self._drain)
                for child in self._serving():
                    child.tell(DRAIN)

    def _serving(self) -> list[Child]:
        found = [child for post in self._posts for child in (post.child, post.successor) if child is not None]
        return [*found, *(child for _, child in self._leaving)]

    # Starting -------------------------------------------------------------------------------------------------

    def _fill(self, now: float) -> None:
        """Start what is missing and due, and the next successor if none is on its way."""
        if self._tiers is not None:
            return
        for post in self._posts:
            if post.child is None and post.successor is None and post.due <= now:
                post.child = self._start(post)
        if any(post.successor is not None for post in self._posts):
            return
        for _ in range(len(self._rolling)):
            post = self._rolling.popleft()
            if post.due > now:
                self._rolling.append(post)
            elif post.child is not None:  # else whoever is started next is new anyway
                post.successor = self._start(post)
                return

    def _start(self, post: Post) -> Child | None:
        try:
            child = post.start()
        except Exception as error:  # noqa: BLE001 - a machine out of memory or disk must not take the master down
            post.due = time.monotonic() + post.pace.fell(0.0)
            logger.error("cannot start", child=post.name, reason=f"{type(error).__name__}: {error}")
            return None
        self._watch(child)
        if child.channel is None:
            self._arrived(child)
        return child

    def _watch(self, child: Child) -> None:
        if child.channel is not None:
            self._selector.register(child.channel, selectors.EVENT_READ, lambda: self._heard(child))

    def _heard(self, child: Child) -> None:
        if child.channel is None:
            return
        try:
            said = child.channel.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            self._hang_up(child)
            return
        child.heard = time.monotonic()
        if READY in said:
            self._arrived(child)
        if SUCCESSOR in said:
            self._rolling.extend(post for post in self._posts if post.child is child and post not in self._rolling)

    def _arrived(self, child: Child) -> None:
        child.ready = True
        logger.info("started", child=child.name, pid=child.pid)
        if self._closes_at is not None:
            child.tell(DRAIN)
        for post in self._posts:
            if post.successor is child:
                old, post.child, post.successor = post.child, child, None
                if old is not None:
                    self._dismiss(post, old, time.monotonic(), RETIRE)
        if self._announce is not None and all(post.child is not None and post.child.ready for post in self._posts):
            announce, self._announce = self._announce, None
            announce()

    # Ending ---------------------------------------------------------------------------------------------------

    def _dismiss(self, post: Post | None, child: Child, now: float, order: bytes = RETIRE) -> None:
        self._leaving.append((post, child))
        if post is None:
            self._watch(child)
            post = Post(child.name, 0, lambda: child, grace=self._posts[0].grace)
        post.stop(child, now, order)

    def _bury(self, now: float) -> None:
        for pid, code in reap():
            if pid == self._trial:
                self._judge(code)
                continue
            child = next((one for one in self._serving() if one.pid == pid), None)
            if child is not None:
                self._hang_up(child)
                child.kill()  # what it left in its own process group
                self._fallen(child, code, now)

    def _hang_up(self, child: Child) -> None:
        """Forget the channel; a worker that closed it is ending, or will be killed for its silence."""
        if child.channel is not None:
            with suppress(KeyError, ValueError):
                self._selector.unregister(child.channel)
            child.channel.close()
            child.channel = None

    def _fallen(self, child: Child, code: int, now: float) -> None:
        leaving = len(self._leaving)
        self._leaving = [(post, one) for post, one in self._leaving if one is not child]
        if len(self._leaving) < leaving or self._tiers is not None:
            logger.info("ended", child=child.name, pid=child.pid, code=code)
        for post in self._posts:
            if child not in {post.child, post.successor}:
                continue
            if post.child is child:
                post.child, post.successor = post.successor, None
            else:
                post.successor = None
                self._rolling.append(post)
            if self._tiers is None:
                delay = post.pace.fell(now - child.started)
                post.due = now + delay
                level = "ERROR" if delay else "WARNING"
                logger.log(level, "fallen", child=child.name, pid=child.pid, code=code, next_try_in_seconds=delay)

    def _kill_overdue(self, now: float) -> None:
        for child in self._serving():
            silent = now - child.heard > (STALL_SECONDS if child.ready else START_SECONDS)
            late = child.deadline is not None and now > child.deadline
            if late or (silent and child.channel is not None):
                logger.error("killed", child=child.name, pid=child.pid, reason="too late" if late else "silent")
                child.kill()
                child.deadline = now + STALL_SECONDS  # nothing but a stuck kernel needs it again

    def _stopped(self, now: float) -> bool:
        """Take the next step of an orderly stop; True when nothing is left."""
        if self._closes_at is None or now < self._closes_at:
            return False
        if self._tiers is None:
            self._tiers = sorted({post.tier for post in self._posts})
            forget(self._listener)
            self._end(self._tiers[0], now)
        while self._tiers and not self._alive(self._tiers[0]):
            self._tiers.pop(0)
            if self._tiers:
                self._end(self._tiers[0], now)
        return not self._tiers and not self._leaving

    def _alive(self, tier: int) -> bool:
        mine = any(post.child or post.successor for post in self._posts if post.tier == tier)
        return mine or any((post.tier if post else 0) == tier for post, _ in self._leaving)

    def _end(self, tier: int, now: float) -> None:
        for post in self._posts:
            if post.tier == tier:
                for child in filter(None, (post.child, post.successor)):
                    post.stop(child, now)

    # New code -------------------------------------------------------------------------------------------------

    def _reload(self) -> None:
        """Try the new code and settings in a child; `_judge` goes on when it has ended."""
        if self._closes_at is not None:
            return
        if self._trial is not None:
            self._again = True
            return
        self._trial = self._renewal.check()
        logger.info("reload asked for")

    def _judge(self, code: int) -> None:
        self._trial = None
        if self._again:
            self._again = False
            self._reload()
        elif code != 0:
            logger.error("reload refused, the old configuration stays", reason=self._renewal.refusal())
        elif self._closes_at is None:
            self._renewal.take(self._listener, self._serving())
