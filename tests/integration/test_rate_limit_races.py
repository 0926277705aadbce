"""Random schedules of many workers against real stores, judged by the stores' own records of when they admitted."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import anyio
import psycopg
import pytest
import redis

from actors.domain.rate_limit import Bucket, Rule
from actors.ports import Admit
from service.postgres.pool import Postgres
from service.postgres.rate_limits import PostgresRateLimits
from service.redis.client import Redis
from service.redis.rate_limits import PREFIX, RedisRateLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

WORKERS = 4  # threads, each with a loop, connections and a mind of its own, as processes have
SECONDS = 2.5  # of windows that last one: each is left and filled again
RULES = [Rule("one", 1, 1), Rule("three", 3, 1), Rule("five", 5, 1)]
WIDE = Rule("wide", 9, 1)
MICROSECONDS = 1_000_000


class RedisStore:
    """Windows in Redis, and the times of its uses in microseconds by Redis' clock."""

    def __init__(self, url: str) -> None:
        self._observer = redis.Redis.from_url(url, decode_responses=True)
        self.open = partial(Redis.open, url)
        self.windows = RedisRateLimits

    def uses(self) -> set[tuple[str, str, int]]:
        """Return bucket, ticket and time of what counts now."""
        found = set()
        for key in self._observer.scan_iter(PREFIX + "*"):
            uses = cast("list[tuple[str, float]]", self._observer.zrange(key, 0, -1, withscores=True))
            # scores are the ends of uses, and all windows here last a second
            found |= {(key.removeprefix(PREFIX), ticket, int(score) - MICROSECONDS) for ticket, score in uses}
        return found


class PostgresStore:
    """Windows in Postgres, and the times of its uses in microseconds by Postgres' clock."""

    def __init__(self, url: str) -> None:
        self._observer = psycopg.connect(url, autocommit=True)
        self.open = partial(Postgres.open, url)
        self.windows = PostgresRateLimits

    def uses(self) -> set[tuple[str, str, int]]:
        """Return bucket, ticket and time of what has counted: nothing cleans here."""
        times = "(extract(epoch FROM expires_at) * 1000000)::bigint - 1000000"
        return set(self._observer.execute(f"SELECT bucket, ticket, {times} FROM vestibule.rate_limits"))  # noqa: S608 - constants


@asynccontextmanager
async def opened(store: RedisStore | PostgresStore) -> AsyncIterator[Any]:
    """Give one worker's windows."""
    opening: Any = store.open()
    async with opening as access:
        yield store.windows(access)


@pytest.fixture(params=[(RedisStore, "valkey"), (PostgresStore, "database")], ids=["redis", "postgres"])
def store(request: pytest.FixtureRequest) -> RedisStore | PostgresStore:
    """Give each store in turn."""
    kind, url = request.param
    made: RedisStore | PostgresStore = kind(request.getfixturevalue(url))
    return made


class Schedule:
    """What the workers do and what came of it: tickets by the buckets' subjects and limits."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - a schedule, no secret
        self.until = time.monotonic() + SECONDS
        self.shared = [Bucket(self.chance.choice(RULES), uuid4().hex) for _ in range(6)]
        self.wide = Bucket(WIDE, uuid4().hex)
        self.buckets = [*self.shared, self.wide]
        self.admitted: list[str] = []
        self.broken_promises: list[float] = []

    async def crowd(self, windows: Any) -> None:  # noqa: ANN401 - either store's
        """Ask for batches of shared buckets, alone or with the wide one, after pauses of any length."""
        while time.monotonic() < self.until:
            batch = [
                Admit(
                    (self.chance.choice(self.shared), *[self.wide] * self.chance.choice([0, 1])),
                    count=self.chance.random() < 0.9,
                    ticket=uuid4().hex,
                )
                for _ in range(self.chance.randint(1, 8))
            ]
            for request, admission in zip(batch, await windows.decide(batch), strict=True):
                if request.count and admission.admitted:
                    self.admitted.append(request.ticket)
            await anyio.sleep(self.chance.choice([0, 0, 0.01, 0.2]))  # chance spreads the askers

    async def patient(self, windows: Any) -> None:  # noqa: ANN401 - as above
        """Use a bucket alone, wait as long as each refusal says, and be admitted then."""
        mine = Bucket(self.chance.choice(RULES), uuid4().hex)
        self.buckets.append(mine)
        waited = 0.0
        while time.monotonic() < self.until:
            request = Admit((mine,), count=True, ticket=uuid4().hex)
            admission = (await windows.decide([request]))[0]
            if admission.admitted:
                self.admitted.append(request.ticket)
            elif waited:
                self.broken_promises.append(waited)
            waited = admission.retry_after
            await anyio.sleep(waited or self.chance.choice([0, 0.05, 0.3]))  # what was promised, or chance

    async def work(self, store: RedisStore | PostgresStore) -> None:
        """Be one worker."""
        async with opened(store) as windows, anyio.create_task_group() as clients:
            for _ in range(2):
                clients.start_soon(self.crowd, windows)
                clients.start_soon(self.patient, windows)


def observe(uses: Callable[[], set[tuple[str, str, int]]], done: threading.Event) -> set[tuple[str, str, int]]:
    """Collect every use; each stays in the store for a second at least."""
    seen = uses()
    while not done.wait(0.15):
        seen |= uses()
    return seen | uses()


def test_no_window_ever_holds_more_than_its_limit(store: RedisStore | PostgresStore) -> None:
    """By the store's clock no closed second holds more uses than the limit, and no admission is missing or extra.

    A client that waits for as long as its refusal says is admitted, whatever the others do.
    """
    schedule = Schedule(7)
    done = threading.Event()
    with ThreadPoolExecutor(WORKERS + 1) as threads:
        observer = threads.submit(observe, store.uses, done)
        loops = ["trio", "asyncio"] * (WORKERS // 2)
        workers = [threads.submit(lambda loop: anyio.run(schedule.work, store, backend=loop), loop) for loop in loops]
        for worker in workers:
            worker.result()
        done.set()
        uses = observer.result()
    assert {ticket for _, ticket, _ in uses} == set(schedule.admitted)
    assert len(schedule.admitted) > 60
    assert schedule.broken_promises == []
    limits = {bucket.key: bucket.rule.limit for bucket in schedule.buckets}
    most = most_in_a_window(uses)
    assert {bucket: count for bucket, count in most.items() if count > limits[bucket]} == {}
    assert sum(count == limits[bucket] for bucket, count in most.items()) > len(RULES), "most windows were full once"


def most_in_a_window(uses: set[tuple[str, str, int]]) -> dict[str, int]:
    """Return for each bucket the most uses that one closed window held."""
    times_of: dict[str, list[int]] = {}
    for bucket, _, time_ in uses:
        times_of.setdefault(bucket, []).append(time_)
    return {
        bucket: max(sum(start <= at <= start + MICROSECONDS for at in times) for start in times)
        for bucket, times in times_of.items()
    }


@pytest.mark.parametrize("count", [2, 3])
def test_batches_of_crossing_buckets_do_not_deadlock(store: RedisStore | PostgresStore, count: int) -> None:
    """Workers that ask for the same buckets in every order all get answers, and each bucket its limit."""
    buckets = [Bucket(Rule("cross", 20, 3600), uuid4().hex) for _ in range(4)]
    admitted: list[tuple[Bucket, ...]] = []

    async def work(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - an order, no secret
        async with opened(store) as windows:
            for _ in range(15):
                groups = list(combinations(chance.sample(buckets, 4), count))
                batch = [Admit(group, count=True, ticket=uuid4().hex) for group in groups]
                for request, admission in zip(batch, await windows.decide(batch), strict=True):
                    if admission.admitted:
                        admitted.append(request.buckets)

    with ThreadPoolExecutor(WORKERS) as threads:
        for worker in [threads.submit(lambda seed: anyio.run(work, seed, backend="trio"), n) for n in range(WORKERS)]:
            worker.result()
    assert max(sum(bucket in group for group in admitted) for bucket in buckets) == 20
