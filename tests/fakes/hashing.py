"""Password hashing without its cost: what was hashed can be checked, and every call is counted."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from uuid import uuid4

import anyio

DUMMY = b"$2b$12$dummy"


class FakeHashing:
    """The Hashing port; each call takes `seconds` of the event loop's clock. `hashes` and `checks` count the calls.

    `accept_all` makes every check right; `during` is called in the middle of each call.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.hashes = 0
        self.checks = 0
        self.checked: list[bytes] = []
        self.accept_all = False
        self.during: Callable[[], None] | None = None

    async def hash(self, secret: bytes) -> bytes:
        """Return a fresh hash."""
        self.hashes += 1
        await self._work()
        salt = uuid4().hex.encode()
        return b"$2b$12$" + salt + sha256(salt + secret).hexdigest().encode()

    async def check(self, secret: bytes, hashed: bytes) -> bool:
        """Return whether the secret made the hash."""
        self.checks += 1
        self.checked.append(hashed)
        await self._work()
        salt, digest = hashed[7:39], hashed[39:]
        return self.accept_all or sha256(salt + secret).hexdigest().encode() == digest

    async def _work(self) -> None:
        await anyio.sleep(self.seconds)
        if self.during is not None:
            self.during()
