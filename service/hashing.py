"""Employs the password actors over their threads, and measures what a hash costs on this machine."""

from __future__ import annotations

import os
import random
from contextlib import AsyncExitStack, asynccontextmanager
from time import thread_time
from typing import TYPE_CHECKING, Any, Protocol

from actors.password_counters import PasswordChecker, PasswordCounters, Passwords
from actors.password_hasher import PasswordHasher
from service.adapters.bcrypt_threads import BcryptThreads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from actors.kit.actor import Actor
    from actors.kit.mailbox import Address
    from service.settings import Settings

# Somebody waits with a code that lives a minute: a check competes with the loops as an equal. Under a flood that keeps
# every loop busy, threads that step back would get a tenth of a core, and an activation would take seconds.
CHECK_NICE = 0
HASH_NICE = 10  # the loops, the database's threads, the mail and the checks go first; a hash takes what is left


class Employ(Protocol):
    """How an actor is employed."""

    def __call__(self, build: Callable[[], Actor[Any]], *, copies: int = 1) -> Address:
        """Return the actor's address."""
        ...


@asynccontextmanager
async def hashing(settings: Settings, employ: Employ, limiter: Address) -> AsyncIterator[Passwords]:
    """Keep the threads of this process around the body, as many for checks and for hashes as there are cores.

    Blocks for one hash: by its CPU time, times the workers that share the cores, the queues are bounded from the start.
    """
    async with AsyncExitStack() as stack:
        cores = os.cpu_count() or 1
        checking = await stack.enter_async_context(BcryptThreads.open(settings.bcrypt_cost, cores, CHECK_NICE))
        hashes = await stack.enter_async_context(BcryptThreads.open(settings.bcrypt_cost, cores, HASH_NICE))
        begun = thread_time()
        dummy = checking.dummy()
        seconds = (thread_time() - begun) * settings.workers

        def employed(kind: type[PasswordHasher], threads: BcryptThreads) -> Address:
            chance = random.random
            return employ(lambda: kind(threads, limiter, cores, dummy, seconds=seconds, chance=chance), copies=cores)

        yield PasswordCounters(employed(PasswordChecker, checking), employed(PasswordHasher, hashes))
