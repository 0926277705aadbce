"""PasswordHasher: bcrypt in a bounded number of threads, checks ahead of new hashes, and a short queue.

A hash is a quarter of a second of a core that nothing can shorten; so the queue is bounded by the time it stands
for, and whoever would wait longer hears `NotAccepted` at once, with the time after which a repeat makes sense.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, assert_never

import anyio

from actors.domain.errors import RateLimited
from actors.kit.actor import Actor
from actors.kit.mailbox import Ask, NotAccepted
from actors.rate_limiter import Admit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from actors.domain.windows import Bucket
    from actors.kit.mailbox import Address, Letter
    from actors.ports import Hashing

WorkT = TypeVar("WorkT")

LONGEST_WAIT_SECONDS = 2.0  # a person waits so long for a form, and a client's time-out is longer
FORGETTING = 0.2  # of a slow hash, with each quicker one: a machine that got busy is noticed at once, not by and by


@dataclass(frozen=True, slots=True)
class Hash(Ask[bytes]):
    """Hash a new password: `$2b$`, 60 bytes."""

    lane: ClassVar[int] = 1  # behind the checks: a code lives a minute, a registration can be repeated
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Check(Ask[bool]):
    """Check a password against a hash, or against the dummy of the same cost when there is no account.

    Raises RateLimited when the windows of `guesses` are full at the moment the thread takes it; a wrong password is
    counted in them before anyone hears of it. So parallel guesses exceed a window by at most the threads at work.
    """

    lane: ClassVar[int] = 0
    secret: bytes = field(repr=False)
    hashed: bytes | None = field(repr=False)
    guesses: tuple[Bucket, ...] = ()


@dataclass(frozen=True, slots=True)
class HashLike(Ask[bytes]):
    """Hash a new password as `like` was hashed, which is a hash, or with `salt` at the present cost."""

    lane: ClassVar[int] = 1
    secret: bytes = field(repr=False)
    salt: bytes = field(repr=False)
    like: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Recognise(Ask[bytes | None]):
    """Say which of the hashes, all made with one salt, is the password's; None for none of them. Raises as Check."""

    lane: ClassVar[int] = 0
    secret: bytes = field(repr=False)
    hashes: tuple[bytes, ...] = field(repr=False)
    guesses: tuple[Bucket, ...] = ()


PasswordMessage = Hash | Check | HashLike | Recognise


class PasswordHasher(Actor[PasswordMessage]):
    """Each copy keeps one thread busy; employ as many as there are cores.

    `seconds` is what one hash takes when every worker of the machine hashes on all its threads. Less is never reckoned
    with: an idle machine's hash is quick, and a queue that was let in by that measure would wait for twice as long.
    `chance` gives numbers in [0, 1] that spread those who are told to come back; at 1 it is as soon as there is room.
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

    def admit(self, message: Ask[Any], ahead: int) -> None:  # noqa: ARG002 - one kind waits like the other
        """Refuse at once what would wait too long, until the queue has room again.

        A crowd that is refused together comes back spread over the time in which the queue runs dry.
        """
        wait = self.expected_wait(ahead)
        if wait > LONGEST_WAIT_SECONDS:
            raise NotAccepted(retry_after=wait - self._chance() * LONGEST_WAIT_SECONDS)

    async def handle(self, letters: Sequence[Letter[PasswordMessage]]) -> None:
        """Hash or check the one letter of the batch."""
        for letter in letters:
            match message := letter.message:
                case Hash(secret):
                    letter.answer(await self._timed(self._hashing.hash(secret)))
                case Check():
                    letter.answer(await self._check(message))
                case HashLike(secret, salt, like):
                    setting = like or self._hashing.setting(salt)
                    letter.answer(await self._timed(self._hashing.hash_like(secret, setting)))
                case Recognise():
                    letter.answer(await self._recognise(message))
                case _:
                    assert_never(message)

    async def _check(self, check: Check) -> bool:
        await self._admitted(check.guesses)
        right = await self._timed(self._hashing.check(check.secret, check.hashed or self._dummy))
        right = right and check.hashed is not None
        if not right:
            await self._count(check.guesses)
        return right

    async def _recognise(self, asked: Recognise) -> bytes | None:
        await self._admitted(asked.guesses)
        setting = asked.hashes[0] if asked.hashes else self._dummy
        hashed = await self._timed(self._hashing.hash_like(asked.secret, setting))
        same = [one for one in asked.hashes if hmac.compare_digest(one, hashed)]
        if not same:
            await self._count(asked.guesses)
        return same[0] if same else None

    async def _admitted(self, guesses: tuple[Bucket, ...]) -> None:
        if guesses:
            admission = await self._limiter.ask(Admit(guesses, count=False))
            if not admission.admitted:
                raise RateLimited(admission.retry_after)

    async def _count(self, guesses: tuple[Bucket, ...]) -> None:
        for bucket in guesses:  # one by one: a full window must not keep the others from counting
            await self._limiter.ask(Admit((bucket,)))

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
