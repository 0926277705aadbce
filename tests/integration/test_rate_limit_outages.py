"""The windows through outages of Redis: no call fails, nothing fails open, and they start over once at most."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast
from uuid import uuid4

import anyio
import psycopg
import pytest

from actors.domain.rate_limit import Bucket, Rule, Use
from actors.ports import Admit, StoreUnavailable
from service.postgres.pool import Postgres
from service.postgres.rate_limits import PAGE, PostgresRateLimits
from service.redis.client import Redis
from service.redis.fallback import REMEMBERED, RateLimitsFallback
from service.redis.rate_limits import PREFIX, RedisRateLimits
from tests.servers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from actors.domain.rate_limit import Admission
    from tests.servers.valkey import ValkeyServer

RULE = Rule("register", 5, 3600)
NOBODY = "postgresql://nobody@127.0.0.1:1/none"


class Worker:
    """One worker's way to the windows, with a bucket in mind."""

    def __init__(self, redis: Redis, postgres: Postgres, bucket: Bucket) -> None:
        self.redis = redis
        self.limits = RateLimitsFallback(RedisRateLimits(redis), PostgresRateLimits(postgres))
        self.bucket = bucket

    async def ask(self, *, count: bool = True, ticket: str | None = None) -> Admission:
        """Decide one request over the bucket."""
        request = Admit((self.bucket,), count, ticket or uuid4().hex)
        return (await self.limits.decide([request]))[0]

    async def remaining(self) -> int:
        """Return how many uses the bucket has left."""
        return (await self.ask(count=False)).readings[0].remaining

    async def admitted(self, calls: int) -> int:
        """Return how many of so many calls, one after the other, were admitted."""
        return sum([(await self.ask()).admitted for _ in range(calls)])

    async def back(self) -> None:
        """Wait until Redis is back for this worker and counts what it has missed, though nobody asks."""
        await until(lambda: not self.redis.breaker.is_open and not self.limits._behind.is_set())  # noqa: SLF001 - what no call shows


@asynccontextmanager
async def worker(valkey: ValkeyServer, database: str, bucket: Bucket) -> AsyncIterator[Worker]:
    """Give a worker with connections of its own, which keeps Postgres clean beside."""
    async with Redis.open(valkey.url) as redis, Postgres.open(database) as postgres, anyio.create_task_group() as aside:
        one = Worker(redis, postgres, bucket)
        aside.start_soon(one.limits.cleaning)
        yield one
        aside.cancel_scope.cancel()


def bucket() -> Bucket:
    """Return a bucket that nobody else uses."""
    return Bucket(RULE, uuid4().hex)


@pytest.mark.parametrize("outage", ["stall", "kill", "kill and wipe"])
async def test_a_window_starts_over_once_in_an_outage(own_valkey: ValkeyServer, database: str, outage: str) -> None:
    """It starts over when Redis goes away and goes on when it is back, whatever Redis remembers; no call waits long."""
    async with worker(own_valkey, database, bucket()) as w:
        assert await w.admitted(3) == 3
        (own_valkey.stall if outage == "stall" else own_valkey.kill)()
        begun = time.monotonic()
        assert (await w.ask()).readings[0].remaining == 4
        assert await w.admitted(20) == 4
        assert time.monotonic() - begun < 1.2
        own_valkey.resume() if outage == "stall" else own_valkey.start(empty=outage == "kill and wipe")
        await w.back()
        refused = await w.ask()
        assert not refused.admitted
        assert 3500 < refused.retry_after <= 3600
        assert w.redis.breaker.opened == 1


@pytest.mark.parametrize("dies", [False, True])
async def test_what_a_worker_admitted_without_redis_binds_all_others(
    own_valkey: ValkeyServer, database: str, *, dies: bool
) -> None:
    """Also where that worker decides no more, and where it is gone and others start after the outage."""
    mine = bucket()
    async with worker(own_valkey, database, mine) as idle:
        own_valkey.stall()
        assert await idle.admitted(5) == 5
        if not dies:
            own_valkey.resume()
            await idle.back()
            async with worker(own_valkey, database, mine) as busy:
                assert await busy.admitted(1) == 0
    own_valkey.resume()
    async with worker(own_valkey, database, mine) as new:
        assert await new.admitted(1) == 0


async def test_a_decision_that_postgres_makes_late_is_not_missed(own_valkey: ValkeyServer, database: str) -> None:
    """Redis is back before Postgres has decided: that use counts in Redis too."""
    async with worker(own_valkey, database, bucket()) as w:
        assert await w.remaining() == 5
        own_valkey.kill()
        async with anyio.create_task_group() as asking:
            with psycopg.connect(database) as connection:
                connection.execute("SELECT pg_advisory_xact_lock(22101, hashtext(%s))", [w.bucket.key])
                asking.start_soon(w.ask)
                await until(lambda: waits_for_a_lock(database))
                own_valkey.start()
                await w.back()
        assert await w.remaining() == 4


async def test_what_redis_counted_in_vain_is_taken_back(own_valkey: ValkeyServer, database: str) -> None:
    """A use that timed out in Redis, was done there later and refused in Postgres does not stay counted."""
    mine = bucket()
    async with worker(own_valkey, database, mine) as one, worker(own_valkey, database, mine) as two:
        assert await one.remaining() == await two.remaining() == 5
        own_valkey.stall()
        tickets = [uuid4().hex for _ in range(5)]
        for ticket in tickets:
            assert (await one.ask(ticket=ticket)).admitted
        assert not (await two.ask()).admitted, "in Redis its script waits to be run, behind one of the first worker's"
        own_valkey.resume()
        await one.back()
        await two.back()
        assert await two.remaining() == 0
        await one.limits.give_back([((mine,), ticket) for ticket in tickets])
        assert await two.remaining() == 5


async def test_what_is_given_back_in_an_outage_is_free_after_it(own_valkey: ValkeyServer, database: str) -> None:
    """A use from before the outage or from inside it that is given back is counted by neither store."""
    async with worker(own_valkey, database, bucket()) as w:
        before = await w.ask()
        own_valkey.stall()
        inside = [await w.ask() for _ in range(3)]
        for admission in (before, inside[0]):
            await w.limits.give_back([((w.bucket,), admission.ticket)])
        assert await w.remaining() == 3
        own_valkey.resume()
        await w.back()
        assert await w.remaining() == 3
        await w.limits.give_back([((w.bucket,), inside[1].ticket)])
        assert await w.remaining() == 4
        own_valkey.kill()
        assert await w.remaining() == 4


async def test_nothing_fails_open(own_valkey: ValkeyServer, database: str) -> None:
    """Without Redis and Postgres nobody is admitted, the answer may be repeated, and what it may have counted goes."""
    mine = bucket()
    async with worker(own_valkey, database, mine) as w, Postgres.open(NOBODY) as nobody:
        away = RateLimitsFallback(RedisRateLimits(w.redis), PostgresRateLimits(nobody))
        assert await w.remaining() == 5
        own_valkey.stall()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await away.decide([Admit((mine,), count=True, ticket=uuid4().hex)])
        own_valkey.resume()
        await w.back()
        with pytest.raises(StoreUnavailable):
            await away.decide([Admit((mine,), count=True, ticket=uuid4().hex)])


async def test_the_memory_of_tickets_to_give_back_is_bounded(own_valkey: ValkeyServer, database: str) -> None:
    """In an outage the oldest tickets beyond the bound stay counted until their windows have passed."""
    async with worker(own_valkey, database, bucket()) as w:
        own_valkey.kill()
        await w.limits.give_back([((w.bucket,), str(number)) for number in range(REMEMBERED + 3)])
        assert list(w.limits._owed) == [str(number) for number in range(3, REMEMBERED + 3)]  # noqa: SLF001 - as above


async def test_pages_of_uses_are_told_in_full(own_valkey: ValkeyServer, database: str) -> None:
    """However many windows an outage has filled, each use counts in Redis, once, and as long as it would have."""
    buckets = [bucket() for _ in range(2 * PAGE + 1)]
    requests = [Admit((each,), count=True, ticket=uuid4().hex) for each in buckets]
    async with Postgres.open(database) as postgres:
        for start in range(0, len(requests), 64):
            await PostgresRateLimits(postgres).decide(requests[start : start + 64])
    async with worker(own_valkey, database, bucket()) as w:
        await w.ask()
        decided = await RedisRateLimits(w.redis).decide([Admit((each,), False, "") for each in buckets])  # noqa: FBT003 - by position
        readings = [admission.readings[0] for admission in decided]
        assert {reading.remaining for reading in readings} == {4}
        assert all(3590 < reading.reset_seconds <= 3600.01 for reading in readings)
        late = Use(bucket().key, "late", 0.2)
        await RedisRateLimits(w.redis).load([late, late])
        assert 0 < await w.redis.call(lambda r: cast("int", r.pttl(PREFIX + late.key))) <= 202


async def test_what_counts_no_more_is_removed(own_valkey: ValkeyServer, database: str) -> None:
    """The cleaner leaves no use in Postgres whose window is over, and every one that still counts."""
    async with Postgres.open(database) as postgres:
        short = Bucket(Rule("short", 5, 1), "client")
        requests = [Admit((each,), count=True, ticket="t") for each in (short, bucket(), bucket())]
        await PostgresRateLimits(postgres).decide(requests)
        await anyio.sleep(1.01)  # the window of one second, by the database's clock
        async with worker(own_valkey, database, bucket()):
            await until(lambda: len(rows(database)) == 2)


async def test_no_client_is_named_in_a_store(own_valkey: ValkeyServer, database: str) -> None:
    """Rows and keys hold digests of what they count, no address of a client."""
    async with worker(own_valkey, database, Bucket(RULE, "192.0.2.7")) as w:
        await w.ask()
        assert not await w.redis.call(lambda r: list(r.scan_iter("*192.0.2.7*")))
        own_valkey.kill()
        await w.ask()
    assert "192.0.2.7" not in str(rows(database))


def rows(database: str) -> list[tuple[object, ...]]:
    """Return the uses that Postgres holds."""
    with psycopg.connect(database) as connection:
        return connection.execute("SELECT * FROM vestibule.rate_limits").fetchall()


def waits_for_a_lock(database: str) -> bool:
    """Return whether a statement waits for a bucket."""
    with psycopg.connect(database) as connection:
        return bool(connection.execute("SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchall())
