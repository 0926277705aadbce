"""PasswordHasher: bcrypt on a bounded number of threads, checks ahead of new hashes, and a short queue.

Nothing can shorten a hash, a quarter of a second of a core. So the queue is bounded by the time it stands for: what
would wait longer is refused at once with `NotAccepted` and the time after which a repeat makes sense.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeVar, assert_never

import anyio

from actors.domain.errors import RateLimited
from actors.kit.actor import Actor
from actors.kit.mailbox import Ask, NotAccepted
from actors.ports import Admit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from actors.domain.rate_limit import Bucket
    from actors.kit.mailbox import Address, Envelope
    from actors.ports import Hashing

WorkT = TypeVar("WorkT")

LONGEST_WAIT_SECONDS = 2.0  # a person waits so long for a form, and a client's time-out is longer
FORGETTING = 0.2  # of a slow hash, with each quicker one: a machine that got busy is noticed at once


@dataclass(frozen=True, slots=True)
class Hash(Ask[bytes]):
    """Hash a new password: `$2b$`, 60 bytes."""

    lane: ClassVar[int] = 1  # behind the checks: a code lives for a minute, a registration can be repeated
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Check(Ask[bool]):
    """Check a password against a hash, or against the dummy of the same cost when there is no account.

    Raises RateLimited when the windows of `guesses` are full when a thread takes it; a wrong password is counted in
    them before the answer. So parallel guesses exceed a window by at most the number of hash threads.
    """

    secret: bytes = field(repr=False)
    hashed: bytes | None = field(repr=False)
    guesses: tuple[Bucket, ...] = ()


PasswordMessage = Hash | Check


class PasswordHasher(Actor[PasswordMessage]):
    """Each copy keeps one thread busy; start as many as there are cores.

    `seconds` is what one hash takes when all threads of all workers are busy, the least that is ever expected: by an
    idle machine's quick hash the queue would be let in twice as long. `chance` gives numbers in [0, 1] that spread the
    clients who are told to come back; at 1 it is as soon as there is room.
    """

    name = "PasswordHasher"
    refusals: ClassVar[tuple[type[Exception], ...]] = (RateLimited,)
    lanes = 2
    batch_limit = 1

    def __init__(  # noqa: PLR0913 - what it works with, and two numbers that only matter under load
        self,
        hashing: Hashing,
        limiter: Address,
        threads: int,
        dummy: bytes,
        *,
        seconds: float = 0.0,
        chance: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._hashing = hashing
        self._limiter = limiter
        self._threads = threads
        self._dummy = dummy
        self._chance = chance
        self._least_seconds = seconds
        self._seconds = seconds
        self._busy = 0

    def expected_wait(self, ahead: int) -> float:
        """Return the seconds until a thread takes a message that has `ahead` others before it."""
        return max(0, ahead + self._busy - self._threads + 1) * self._seconds / self._threads

    def admit(self, ahead: int) -> None:
        """Refuse at once what would wait too long, until the queue has room again.

        Clients that are refused together come back spread over the time in which the queue runs dry.
        """
        wait = self.expected_wait(ahead)
        if wait > LONGEST_WAIT_SECONDS:
            raise NotAccepted(retry_after=wait - self._chance() * LONGEST_WAIT_SECONDS)

    async def handle(self, envelopes: Sequence[Envelope[PasswordMessage]]) -> None:
        """Hash or check the one envelope of the batch."""
        for envelope in envelopes:
            match message := envelope.message:
                case Hash(secret):
                    envelope.answer(await self._timed(self._hashing.hash(secret)))
                case Check():
                    envelope.answer(await self._check(message))
                case _:
                    assert_never(message)

    async def _check(self, check: Check) -> bool:
        if check.guesses:
            admission = await self._limiter.ask(Admit(check.guesses, count=False))
            if not admission.admitted:
                raise RateLimited(admission.retry_after)
        right = await self._timed(self._hashing.check(check.secret, check.hashed or self._dummy))
        right = right and check.hashed is not None
        if not right:
            for bucket in check.guesses:  # one by one: a full window must not keep the others from counting
                await self._limiter.ask(Admit((bucket,)))
        return right

    async def _timed(self, work: Awaitable[WorkT]) -> WorkT:
        """Keep a thread busy and remember how long."""
        begun = anyio.current_time()
        self._busy += 1
        try:
            return await work
        finally:
            self._busy -= 1
            took = anyio.current_time() - begun
            self._seconds = max(took, self._seconds - (self._seconds - took) * FORGETTING, self._least_seconds)
