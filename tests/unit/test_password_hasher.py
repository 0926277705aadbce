"""PasswordHasher: bounded by time, checks ahead of hashes, and guesses counted where they cannot be outrun."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from actors.domain.errors import RateLimited
from actors.domain.rate_limit import Bucket, Rule
from actors.kit.mailbox import Address, NotAccepted
from actors.kit.supervisor import Supervisor
from actors.password_hasher import LONGEST_WAIT_SECONDS, Check, Hash, PasswordHasher
from actors.ports import Admit
from actors.rate_limiter import RateLimiter
from tests.fakes.callers import callers, refused
from tests.fakes.hashing import DUMMY, FakeHashing
from tests.fakes.rate_limits import FakeRateLimits

THREADS = 2
GUESSES = (Bucket(Rule("password", 3, 60), "ada"),)
FIRST = Hash(b"the first tells how long one takes")


@asynccontextmanager
async def hasher(
    hashing: FakeHashing,
    windows: FakeRateLimits | None = None,
    *,
    threads: int = THREADS,
    **options: Any,  # noqa: ANN401 - of the actor
) -> AsyncIterator[Address]:
    """Run the actor, with as many copies as threads, around the body."""
    crashes: list[Exception] = []
    supervisor = Supervisor(lambda _, error: crashes.append(error))
    limiter = supervisor.start(lambda: RateLimiter(windows or FakeRateLimits(trio.current_time), Counter()))
    address = supervisor.start(lambda: PasswordHasher(hashing, limiter, threads, DUMMY, **options), copies=threads)
    async with supervisor.running():
        yield address
    assert crashes == []


async def test_checks_go_ahead_of_hashes_and_the_threads_are_all_at_work(autojump_clock: MockClock) -> None:
    """A check waits for the hashes at work alone; seven jobs of a second on two threads take four."""
    async with hasher(FakeHashing(seconds=1)) as address, callers() as askers:
        for _ in range(6):
            await askers.call_in_turn(address.ask, Hash(b"secret"))
        await address.ask(Check(b"secret", DUMMY))
        assert autojump_clock.current_time() == pytest.approx(2)
    assert autojump_clock.current_time() == pytest.approx(4)


async def test_who_would_wait_too_long_is_refused_at_once(autojump_clock: MockClock) -> None:
    """With the time after which a repeat makes sense; and whoever is let in is served within the promise."""
    waits: list[float] = []
    retry_after: list[float] = []
    async with hasher(FakeHashing(seconds=1)) as address:
        await address.ask(FIRST)

        async def ask() -> None:
            begun = autojump_clock.current_time()
            try:
                await address.ask(Hash(b"secret"))
                waits.append(autojump_clock.current_time() - begun - 1)
            except NotAccepted as busy:
                assert autojump_clock.current_time() == begun
                retry_after.append(busy.retry_after)

        async with callers() as askers:
            for _ in range(20):
                await askers.call_in_turn(ask)
        await address.ask(Hash(b"a while later there is room again"))
    assert (len(waits) >= 5, max(waits) <= LONGEST_WAIT_SECONDS) == (True, True)
    assert 0 < min(retry_after) <= 1  # then the queue has room again, and has not run dry
    assert address.mailbox.turned_away == len(retry_after) == 20 - len(waits)


async def test_hashes_that_wait_do_not_refuse_a_check(autojump_clock: MockClock) -> None:
    """The wait is counted for its own lane."""
    async with hasher(FakeHashing(seconds=1)) as address, callers() as askers:
        await address.ask(FIRST)
        for _ in range(5):
            await askers.call_in_turn(address.ask, Hash(b"secret"))
        assert not await address.ask(Check(b"secret", None))
        assert autojump_clock.current_time() <= 1 + LONGEST_WAIT_SECONDS + 1


async def test_parallel_guesses_exceed_a_window_by_the_threads_at_most(autojump_clock: MockClock) -> None:
    """Sixteen at once: each is looked at when a thread takes it, after those before it were counted."""
    hashing = FakeHashing(seconds=0.1)
    async with hasher(hashing) as address, callers() as askers:
        for _ in range(16):
            askers.call(address.ask, Check(b"wrong", DUMMY, GUESSES))
    assert 3 <= hashing.checks <= 3 + THREADS - 1
    assert Counter(askers.heard) == {False: hashing.checks, RateLimited: 16 - hashing.checks}
    assert autojump_clock.current_time() < 1


async def test_a_full_window_does_not_keep_the_others_from_counting() -> None:
    """Two wrong guesses at once fill the address' window of one, and both count for the client."""
    windows = FakeRateLimits(lambda: 0.0)
    both = (Bucket(Rule("password", 1, 60), "ada"), Bucket(Rule("password-client", 30, 60), "192.0.2.7"))
    async with hasher(FakeHashing(), windows) as address, callers() as askers:
        for _ in range(THREADS):
            askers.call(address.ask, Check(b"wrong", DUMMY, both))
    (seen,) = await windows.decide([Admit(both, count=False, ticket="look")])
    assert [reading.remaining for reading in seen.readings] == [0, 30 - THREADS]


async def test_a_hash_is_reckoned_as_it_lasts_on_a_busy_machine(autojump_clock: MockClock) -> None:
    """A worker that has not hashed yet, or only while the others were idle, lets no longer queue in."""
    hashing = FakeHashing(seconds=0.5)
    async with hasher(hashing, seconds=1.0) as address, callers() as askers:
        await address.ask(Hash(b"quick, for nobody else hashes"))
        hashing.seconds = 1.0
        for _ in range(6):
            await askers.call_in_turn(address.ask, Hash(b"secret"))
        with pytest.raises(NotAccepted):
            address.expect_room(Hash(b"one too many"))
        address.expect_room(Check(b"secret", DUMMY))
    assert address.mailbox.turned_away == 1


async def test_a_crowd_that_was_refused_comes_back_spread(autojump_clock: MockClock) -> None:
    """By chance between the moment when there is room again and the one when the queue has run dry."""
    chances = iter([1.0, 0.5, 0.0])
    busy = hasher(FakeHashing(1.0), threads=1, seconds=1.0, chance=chances.__next__)
    async with busy as address, callers() as askers:
        for _ in range(3):
            await askers.call_in_turn(address.ask, Hash(b"secret"))
        for wait in (1.0, 2.0, 3.0):
            assert (await refused(NotAccepted, address.ask(Hash(b"one too many")))).retry_after == wait
    assert autojump_clock.current_time() == pytest.approx(3)
