"""Keeps actors running: rebuilds the crashed, gives up when they crash too often, drains them in order."""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from actors.kit.mailbox import Address, Mailbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from anyio.abc import TaskGroup

    from actors.kit.actor import Actor
    from actors.kit.mailbox import Ask

RESTART_BUDGET = 5  # crashes of one actor ...
RESTART_SECONDS = 30.0  # ... within so many seconds are a bug or a broken machine: a new process is the better try


class TooManyCrashes(Exception):
    """An actor spent its restart budget: end the process and let the master start another."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the actor {name} crashed more than {RESTART_BUDGET} times in {RESTART_SECONDS:g} s")


@dataclass(slots=True)
class Post:
    """One place in the house: how to build its actor, in how many copies, and the mailbox that survives them."""

    build: Callable[[], Actor[Any]]
    copies: int
    mailbox: Mailbox
    actor: Actor[Any]
    crashes: deque[float] = field(default_factory=deque)
    mending: anyio.Lock = field(default_factory=anyio.Lock)
    restarts: int = 0

    @property
    def name(self) -> str:
        """The actor's name."""
        return self.actor.name


class Supervisor:
    """Runs posts inside one task group and drains them in the reverse order of their employment.

    Actors of later posts may ask those of earlier ones, so the later drain first. After `running()` ends every
    accepted message has been settled, on cancel and after too many crashes with an error. `report` is told of each
    crash by the actor's name and the error; it must not raise.
    """

    def __init__(self, report: Callable[[str, Exception], None]) -> None:
        self._report = report
        self._posts: list[Post] = []

    def employ(self, build: Callable[[], Actor[Any]], *, copies: int = 1) -> Address:
        """Add a post and return its address; `build` is called again after each crash."""
        actor = build()
        post = Post(build, copies, Mailbox(actor.capacity, actor.lanes), actor)
        self._posts.append(post)

        def admit(message: Ask[Any], ahead: int) -> None:
            post.actor.admit(message, ahead)  # of the moment: the post's actor changes after a crash

        return Address(post.mailbox, admit)

    def posts(self) -> Sequence[Post]:
        """Return the posts in the order of their employment, for the metrics."""
        return tuple(self._posts)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run all posts around the body; on the way out close the mailboxes one by one and wait for each to drain.

        Raises TooManyCrashes (inside an exception group) when a post's budget is spent.
        """
        try:
            for post in self._posts:
                await post.actor.started()
            async with anyio.create_task_group() as everyone:
                drained = [self._open(post, everyone) for post in self._posts]
                yield
                for post, done in zip(reversed(self._posts), reversed(drained), strict=True):
                    post.mailbox.close()
                    await done.wait()
                    await post.actor.stopped()
        finally:
            for post in self._posts:
                post.mailbox.abandon()

    def _open(self, post: Post, everyone: TaskGroup) -> anyio.Event:
        done = anyio.Event()

        async def copies() -> None:
            async with anyio.create_task_group() as group:
                for _ in range(post.copies):
                    group.start_soon(self._keep, post)
            done.set()

        everyone.start_soon(copies)
        return done

    async def _keep(self, post: Post) -> None:
        """Hand batches to whichever actor holds the post at that moment, until the mailbox is drained."""
        while letters := await post.mailbox.take(post.actor.batch_limit):
            actor = post.actor
            try:
                await actor.work(letters)
            except Exception as error:  # noqa: BLE001 - the one place where a crash becomes a restart
                self._charge(post, error)
                await self._replace(post, actor)

    async def _replace(self, post: Post, crashed: Actor[Any]) -> None:
        """Put a new actor in the place of the crashed one, once for all copies that crashed over it."""
        async with post.mending:
            while post.actor is crashed:
                try:
                    actor = post.build()
                    await actor.started()
                except Exception as error:  # noqa: BLE001 - to fail at the start is one more crash
                    self._charge(post, error)
                else:
                    post.actor = actor

    def _charge(self, post: Post, error: Exception) -> None:
        """Report the crash and raise TooManyCrashes when the budget is spent."""
        self._report(post.name, error)
        now = anyio.current_time()
        post.restarts += 1
        post.crashes.append(now)
        while post.crashes and post.crashes[0] < now - RESTART_SECONDS:
            post.crashes.popleft()
        if len(post.crashes) > RESTART_BUDGET:
            raise TooManyCrashes(post.name)
