"""PasswordHasher: bcrypt in a bounded number of threads, checks ahead of new hashes, and a short queue.

A hash is a quarter of a second of a core that nothing can shorten; so the queue is bounded by the time it stands
for, and whoever would wait longer hears `NotAccepted` at once, with the time after which a repeat makes sense.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, assert_never

import anyio

from actors.kit.actor import Actor
from actors.kit.mailbox import Ask, NotAccepted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.kit.mailbox import Letter
    from actors.ports import Hashing

LONGEST_WAIT_SECONDS = 2.0  # a person waits so long for a form, and a client's time-out is longer
SMOOTHING = 0.2  # of the running mean of a hash' duration


@dataclass(frozen=True, slots=True)
class Hash(Ask[bytes]):
    """Hash a new password: `$2b$`, 60 bytes."""

    lane: ClassVar[int] = 1  # behind the checks: a code lives a minute, a registration can be repeated
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Check(Ask[bool]):
    """Check a password against a hash, or against the dummy of the same cost when there is no account."""

    lane: ClassVar[int] = 0
    secret: bytes = field(repr=False)
    hashed: bytes | None = field(repr=False)


class PasswordHasher(Actor):
    """Each copy keeps one thread busy; employ as many as there are cores."""

    name = "PasswordHasher"
    lanes = 2
    batch_limit = 1

    def __init__(self, hashing: Hashing, threads: int, dummy: bytes) -> None:
        self._hashing = hashing
        self._threads = threads
        self._dummy = dummy
        self._seconds = 0.0
        self._busy = 0

    def expected_wait(self, ahead: int) -> float:
        """Return the seconds until a thread takes a message that has `ahead` others before it."""
        return max(0, ahead + self._busy - self._threads + 1) * self._seconds / self._threads

    def admit(self, message: Ask[Any], ahead: int) -> None:
        """Refuse at once what would wait too long."""
        wait = self.expected_wait(ahead)
        if wait > LONGEST_WAIT_SECONDS:
            raise NotAccepted(retry_after=wait)

    async def handle(self, letters: Sequence[Letter]) -> None:
        """Hash or check the one letter of the batch."""
        for letter in letters:
            message: Hash | Check = letter.message  # type: ignore[assignment]  # the mailbox carries any message
            begun = anyio.current_time()
            self._busy += 1
            try:
                letter.answer(await self._work(message))
            finally:
                self._busy -= 1
            took = anyio.current_time() - begun
            self._seconds += (took - self._seconds) * (SMOOTHING if self._seconds else 1)

    async def _work(self, message: Hash | Check) -> bytes | bool:
        match message:
            case Hash(secret):
                return await self._hashing.hash(secret)
            case Check(secret, None):
                await self._hashing.check(secret, self._dummy)
                return False
            case Check(secret, hashed):
                return await self._hashing.check(secret, hashed)
            case _:
                assert_never(message)
