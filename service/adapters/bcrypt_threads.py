"""bcrypt in threads of our own at a low priority, so that a hash never delays a cheap request."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import bcrypt
from loguru import logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ResultT = TypeVar("ResultT")

NICE = 10  # the loop, the database's threads and the mail go first; the hash takes what is left, which is nearly all


class BcryptThreads:
    """The Hashing port; bcrypt releases the GIL, so as many threads as cores fill them."""

    def __init__(self, cost: int, threads: int) -> None:
        self._cost = cost
        self._threads = ThreadPoolExecutor(threads, "bcrypt", initializer=_step_back)

    @classmethod
    @asynccontextmanager
    async def open(cls, cost: int, threads: int) -> AsyncIterator[BcryptThreads]:
        """Keep the threads around the body; what runs at its end is waited for."""
        hashing = cls(cost, threads)
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

    async def _run(self, work: Callable[[], ResultT]) -> ResultT:
        """Run in a thread and wait for it on whichever loop this is; a cancelled wait leaves the thread to finish."""
        done = anyio.Event()
        loop = anyio.lowlevel.current_token()

        def wake(_: object) -> None:
            with suppress(anyio.RunFinishedError):
                anyio.from_thread.run_sync(done.set, token=loop)

        future = self._threads.submit(work)
        future.add_done_callback(wake)
        await done.wait()
        return future.result()


def _step_back() -> None:
    if hasattr(os, "setpriority"):
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
