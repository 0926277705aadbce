"""bcrypt in threads of our own, at a priority of their own: a hash never delays a cheap request."""

from __future__ import annotations

import os
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import anyio
import anyio.from_thread
import anyio.lowlevel
import bcrypt
from loguru import logger

from actors.kit.mailbox import Letter, Offer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ResultT = TypeVar("ResultT")

# bcrypt packs bits as Base64 does, in an alphabet of its own.
BCRYPT_BASE64 = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
    b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
)


class BcryptThreads:
    """The Hashing port; bcrypt releases the GIL, so as many threads as cores fill them."""

    def __init__(self, cost: int, threads: int, nice: int) -> None:
        self._cost = cost
        self._threads = ThreadPoolExecutor(threads, "bcrypt", initializer=partial(_step_back, nice))

    @classmethod
    @asynccontextmanager
    async def open(cls, cost: int, threads: int, nice: int = 0) -> AsyncIterator[BcryptThreads]:
        """Keep the threads, each as nice as told, around the body.

        Its end waits for no hash: what runs then ends by itself, what has not begun never does.
        """
        hashing = cls(cost, threads, nice)
        try:
            yield hashing
        finally:
            hashing._threads.shutdown(wait=False, cancel_futures=True)

    def dummy(self) -> bytes:
        """Return a hash of this cost that no password makes: what an unknown address is checked against."""
        return bcrypt.hashpw(os.urandom(32).hex().encode(), bcrypt.gensalt(self._cost))

    async def hash(self, secret: bytes) -> bytes:
        """Return a fresh `$2b$` hash of at most 72 bytes."""
        return await self._run(lambda: bcrypt.hashpw(secret, bcrypt.gensalt(self._cost)))

    async def check(self, secret: bytes, hashed: bytes) -> bool:
        """Return whether the secret made the hash; a corrupt hash is a failed check and an alarm."""
        try:
            return await self._run(lambda: bcrypt.checkpw(secret, hashed))
        except ValueError:
            logger.error("a stored password hash is corrupt")
            return False

    def setting(self, salt: bytes) -> bytes:
        """Return what `hash_like` takes to hash with these 16 bytes of salt, at the present cost."""
        encoded = b64encode(salt).rstrip(b"=").translate(BCRYPT_BASE64)
        return b"$2b$%02d$%s" % (self._cost, encoded)

    async def hash_like(self, secret: bytes, setting: bytes) -> bytes:
        """Return the hash with the salt and the cost of `setting`; a corrupt one is an alarm and makes no hash."""
        try:
            return await self._run(lambda: bcrypt.hashpw(secret, setting))
        except ValueError:
            logger.error("a stored password hash is corrupt")
            return b""

    async def _run(self, work: Callable[[], ResultT]) -> ResultT:
        """Run in a thread and wait for it on whichever loop this is; a cancelled wait leaves the thread to finish."""
        outcome, loop = Letter(Offer()), anyio.lowlevel.current_token()

        def job() -> None:
            try:
                settle = partial(outcome.answer, work())
            except Exception as error:  # noqa: BLE001 - it is raised again in the caller
                settle = partial(outcome.refuse, error)
            with suppress(anyio.RunFinishedError):
                anyio.from_thread.run_sync(settle, token=loop)

        self._threads.submit(job)
        return cast("ResultT", await outcome.outcome())


def _step_back(nice: int) -> None:
    if nice and hasattr(os, "setpriority"):
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + nice)
