"""The roster of a master: which child holds which post, who is to succeed whom, and who has been told to go."""

from __future__ import annotations

import selectors
import signal
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from loguru import logger

from service.children import DRAIN, READY, RETIRE, STOP, SUCCESSOR, Child, Post, stopped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STALL_SECONDS = 8.0  # a worker beats every second; a longer silence is a stuck loop or a stopped process
SERVER_GRACE_SECONDS = 15.0  # for a last checkpoint; killed later, they recover at the next start
START_SECONDS = 60.0  # to become ready: its first hash blocks, on a machine with too much to do for long


class Roster:
    """Keeps every post filled until `end`, and replaces children one at a time, the new one first.

    Posts that have a child already (after a reload) are replaced; `strangers`, children without a post, are sent away,
    servers among them (they have no channel) once nobody of the old ones is left who may use them.
    Readable channels call back through the selector's `data`.
    """

    def __init__(
        self, posts: Sequence[Post], selector: selectors.BaseSelector, strangers: Sequence[Child] = ()
    ) -> None:
        self._posts = posts
        self._selector = selector
        self._rolling: deque[Post] = deque(post for post in posts if post.child is not None and post.renew)
        self._leaving: list[tuple[int, Child]] = []  # with the tier that they belonged to
        self._draining = False
        self._ended = False
        for child in self.children():
            self._watch(child)
        self._last = max(post.tier for post in posts) + 1
        for child in strangers:
            self._watch(child)
            if child.channel is None and child.deadline is None:  # else it was told before this reload
                self._leaving.append((self._last, child))
            else:
                self._dismiss(min(posts, key=lambda post: post.tier), child, RETIRE)  # API workers: the longest grace

    def children(self) -> Iterator[Child]:
        """Return all that run, those that are on their way out last."""
        for post in self._posts:
            yield from (child for child in (post.child, post.successor) if child is not None)
        yield from (child for _, child in self._leaving)

    def complete(self) -> bool:
        """Return whether every post has its child, all of them are ready, and none is about to be replaced."""
        settled = not self._rolling and all(post.successor is None for post in self._posts)
        return settled and all(post.child and post.child.ready for post in self._posts)

    def fill(self, now: float) -> None:
        """Start what is missing and due, and the next successor if none is on its way."""
        if self._ended:
            return
        self._part_with_servers()
        for post in self._posts:
            if post.child is None and post.successor is None and post.due <= now:
                post.child = self._start(post)
        if any(post.successor is not None for post in self._posts):
            return
        for _ in range(len(self._rolling)):
            post = self._rolling.popleft()
            if post.child is None:
                continue  # whoever is started next is new anyway
            if post.due <= now:
                post.successor = self._start(post)
                if post.successor is None:
                    self._rolling.append(post)
                elif post.successor.channel is None:
                    self._succeed(post)
                return
            self._rolling.append(post)

    def _part_with_servers(self) -> None:
        """Send the servers without a post away if they are all that is left of the old."""
        if self.complete() and all(child.deadline is None for _, child in self._leaving):
            self._part(self._last)

    def _part(self, tier: int) -> None:
        """Ask those of a tier to end who are to leave and have not been told so yet."""
        for of, child in self._leaving:
            if of == tier and child.deadline is None:
                child.deadline = time.monotonic() + SERVER_GRACE_SECONDS
                child.signal(signal.SIGTERM)

    def _start(self, post: Post) -> Child | None:
        try:
            child = post.start()
        except Exception as error:  # noqa: BLE001 - a machine out of memory or disk must not take the master down
            post.due = time.monotonic() + post.pace.fell(0.0)
            logger.error("cannot start", child=post.name, reason=f"{type(error).__name__}: {error}")
            return None
        self._watch(child)
        if child.channel is None:
            child.ready = True
            logger.info("started", child=child.name, pid=child.pid)
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
        child.heard = time.monotonic()
        if not said:  # it is ending, or has lost its mind
            self.forget(child)
            child.deadline = min(child.deadline or child.heard + STALL_SECONDS, child.heard + STALL_SECONDS)
        if READY in said:
            self._arrived(child)
        if SUCCESSOR in said:
            self._rolling.extend(post for post in self._posts if post.child is child and post not in self._rolling)

    def _arrived(self, child: Child) -> None:
        child.ready = True
        logger.info("started", child=child.name, pid=child.pid)
        if self._draining:
            child.tell(DRAIN)
        for post in self._posts:
            if post.successor is child:
                self._succeed(post)

    def _succeed(self, post: Post) -> None:
        old, post.child, post.successor = post.child, post.successor, None
        if old is not None:
            self._dismiss(post, old, RETIRE)

    def _dismiss(self, post: Post, child: Child, order: bytes) -> None:
        self._leaving.append((post.tier, child))
        post.stop(child, time.monotonic(), order)

    def forget(self, child: Child) -> None:
        """Close the channel to a child that is gone."""
        if child.channel is not None:
            with suppress(KeyError, ValueError):
                self._selector.unregister(child.channel)
            child.channel.close()
            child.channel = None

    def fallen(self, pid: int, code: int, now: float) -> None:
        """Take an ended child off the roster; one that was not told to go is replaced, sooner or later."""
        child = next((one for one in self.children() if one.pid == pid), None)
        if child is None:  # as pid 1 we bury strangers too
            return
        self.forget(child)
        child.sweep()
        expected = self._ended or any(one is child for _, one in self._leaving)
        self._leaving = [(tier, one) for tier, one in self._leaving if one is not child]
        if expected:
            logger.info("ended", child=child.name, pid=pid, code=code)
        for post in self._posts:
            if child is post.child:
                post.child, post.successor = post.successor, None
            elif child is post.successor:
                post.successor = None
                self._rolling.append(post)
            else:
                continue
            if not expected:
                self._delay(post, child, code, now)

    def _delay(self, post: Post, child: Child, code: int, now: float) -> None:
        delay = post.pace.fell(now - child.started)
        post.due = now + delay
        level = "ERROR" if delay else "WARNING"
        logger.log(level, "fallen", child=child.name, pid=child.pid, code=code, next_try_in_seconds=delay)

    def kill_overdue(self, now: float) -> None:
        """Kill who has been silent, or leaving, or about to be ready, for too long."""
        for child in self.children():
            if child.channel is None and not stopped(child.pid):
                child.heard = now  # a server does not beat
            silent = child.ready and now - child.heard > STALL_SECONDS
            late = now > child.deadline if child.deadline else not child.ready and now - child.started > START_SECONDS
            if late or silent:
                logger.error("killed", child=child.name, pid=child.pid, reason="too late" if late else "silent")
                child.kill()
                child.heard, child.deadline = now, now + STALL_SECONDS  # nothing but a stuck kernel needs it again

    def drain(self) -> None:
        """Tell everyone that the end is near, while they go on."""
        self._draining = True
        for child in self.children():
            child.tell(DRAIN)

    def end(self, tier: int) -> None:
        """Stop filling posts, and ask the children of one tier to end."""
        self._ended = True
        for post in self._posts:
            if post.tier == tier:
                for child in filter(None, (post.child, post.successor)):
                    post.stop(child, time.monotonic())
        for of, child in self._leaving:
            if of == tier:
                child.tell(STOP)
        self._part(tier)

    def tiers(self) -> list[int]:
        """Return the tiers of all children, in the order of the stop."""
        return sorted({post.tier for post in self._posts} | {tier for tier, _ in self._leaving})

    def alive(self, tier: int) -> bool:
        """Return whether any child of a tier still runs."""
        holding = any(post.child or post.successor for post in self._posts if post.tier == tier)
        return holding or any(of == tier for of, _ in self._leaving)
