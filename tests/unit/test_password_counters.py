"""The two counters: a flood of registrations does not occupy the threads of those who check a password."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from actors.kit.mailbox import NotAccepted
from actors.kit.supervisor import Supervisor
from actors.password_counters import PasswordChecker, PasswordCounters
from actors.password_hasher import Check, Hash, PasswordHasher
from actors.rate_limiter import RateLimiter
from tests.fakes.hashing import DUMMY, FakeHashing
from tests.fakes.windows import FakeWindows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock


@asynccontextmanager
async def counters(seconds: float) -> AsyncIterator[PasswordCounters]:
    """Run both actors, with one thread each, around the body."""
    supervisor = Supervisor(lambda *_: None)
    limiter = supervisor.employ(lambda: RateLimiter(FakeWindows(trio.current_time)))
    hashing = FakeHashing(seconds)
    checker = supervisor.employ(lambda: PasswordChecker(hashing, limiter, 1, DUMMY, seconds=seconds))
    hasher = supervisor.employ(lambda: PasswordHasher(hashing, limiter, 1, DUMMY, seconds=seconds))
    async with supervisor.running():
        yield PasswordCounters(checker, hasher)


async def test_a_check_waits_for_no_hash(autojump_clock: MockClock) -> None:
    """It is done within its own second, whatever is being hashed and waits."""
    async with counters(1.0) as address, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(address.ask, Hash(b"secret"))
        await trio.testing.wait_all_tasks_blocked()
        assert not await address.ask(Check(b"secret", DUMMY))
        assert autojump_clock.current_time() == pytest.approx(1)


async def test_each_counter_has_a_queue_of_its_own(autojump_clock: MockClock) -> None:
    """Where a new hash would be turned away a check is not."""
    async with counters(1.5) as address, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(address.ask, Hash(b"secret"))
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(NotAccepted):
            address.expect_room(Hash(b"secret"))
        address.expect_room(Check(b"secret", DUMMY))
