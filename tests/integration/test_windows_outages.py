from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import psycopg
import pytest

from actors.domain.windows import Bucket, Rule
from actors.ports import StoreUnavailable, WindowRequest
from service.adapters.postgres import Postgres
from service.adapters.postgres_windows import PostgresWindows
from service.adapters.redis_client import Redis
from service.adapters.redis_windows import RedisWindows
from service.adapters.windows_fallback import WindowsFallback
from tests.servers.own_redis import OwnRedis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from actors.domain.windows import Admission

RULE = Rule("register", 5, 3600)
NOBODY = "postgresql://nobody@127.0.0.1:1/none"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnRedis]:
    """Run a Redis of the test's own."""
    with OwnRedis(tmp_path) as server:
        yield server


class Worker:
    """One worker's way to the windows, with a bucket in mind."""

    def __init__(self, redis: Redis, postgres: Postgres, bucket: Bucket) -> None:
        self.redis = redis
        self.windows = WindowsFallback(RedisWindows(redis), PostgresWindows(postgres))
        self.bucket = bucket

    async def ask(self, *, count: bool = True, ticket: str | None = None) -> Admission:
        """Decide one request over the bucket."""
        request = WindowRequest((self.bucket,), count, ticket or uuid4().hex)
        return (await self.windows.decide([request]))[0]

    async def admitted(self, calls: int) -> int:
        """Return how many of so many calls, one after the other, were admitted."""
        return sum([(await self.ask()).admitted for _ in range(calls)])

    async def back(self) -> None:
        """Wait until Redis is back for this worker."""
        with anyio.fail_after(3):
            while self.redis.statistics().is_open:  # noqa: ASYNC110 - what is awaited is another process
                await anyio.sleep(0.01)


@asynccontextmanager
async def worker(redis_url: str, database_url: str, bucket: Bucket) -> AsyncIterator[Worker]:
    """Give a worker with connections of its own."""
    async with Redis.open(redis_url) as redis, Postgres.open(database_url) as postgres:
        yield Worker(redis, postgres, bucket)


def bucket() -> Bucket:
    """Return a bucket that nobody else uses."""
    return Bucket(RULE, uuid4().hex)


async def test_a_window_goes_on_over_a_stall(server: OwnRedis, database_url: str) -> None:
    """Three uses before a stall, two in it, none after them, neither in the outage nor after it; no call fails."""
    async with worker(server.url, database_url, bucket()) as w:
        assert await w.admitted(3) == 3
        server.stall()
        begun = time.monotonic()
        assert (await w.ask()).readings[0].remaining == 1
        assert time.monotonic() - begun < 0.6
        begun = time.monotonic()
        assert await w.admitted(20) == 1
        assert time.monotonic() - begun < 0.6
        server.resume()
        await w.back()
        refused = await w.ask()
        assert not refused.admitted
        assert 3500 < refused.retry_after <= 3600
        assert w.redis.statistics().opened == 1


async def test_a_window_goes_on_over_a_kill(server: OwnRedis, database_url: str) -> None:
    """The same with a server that is killed and started again, having lost all that it counted."""
    async with worker(server.url, database_url, bucket()) as w:
        assert await w.admitted(3) == 3
        server.kill()
        assert await w.admitted(5) == 2
        server.start(empty=True)
        await w.back()
        assert await w.admitted(3) == 0


async def test_a_wipe_starts_the_windows_over_and_nothing_else(server: OwnRedis, database_url: str) -> None:
    """After a FLUSHALL and a SCRIPT FLUSH the next call is decided in Redis, from an empty window."""
    async with worker(server.url, database_url, bucket()) as w:
        assert await w.admitted(6) == 5
        await w.redis.call(lambda r: (r.flushall(), r.script_flush()))
        assert await w.admitted(6) == 5
        assert w.redis.statistics().opened == 0


async def test_workers_share_the_windows_of_an_outage(server: OwnRedis, database_url: str) -> None:
    """Sixteen calls of two workers without Redis admit the limit together."""
    server.kill()
    mine = bucket()
    admitted: list[bool] = []

    async def call(w: Worker) -> None:
        admitted.append((await w.ask()).admitted)

    async with (
        worker(server.url, database_url, mine) as one,
        worker(server.url, database_url, mine) as two,
        anyio.create_task_group() as calls,
    ):
        for _ in range(8):
            calls.start_soon(call, one)
            calls.start_soon(call, two)
    assert sum(admitted) == 5


async def test_an_idle_worker_s_uses_are_told_at_the_return(server: OwnRedis, database_url: str) -> None:
    """What one worker admitted without Redis binds the others after it, though that worker decides no more."""
    mine = bucket()
    async with worker(server.url, database_url, mine) as idle, worker(server.url, database_url, mine) as busy:
        server.stall()
        assert await idle.admitted(5) == 5
        server.resume()
        await idle.back()
        assert await busy.admitted(1) == 0


async def test_what_redis_counted_in_vain_is_taken_back(server: OwnRedis, database_url: str) -> None:
    """A use that timed out in Redis, was done there later and refused in Postgres does not stay counted."""
    mine = bucket()
    async with worker(server.url, database_url, mine) as one, worker(server.url, database_url, mine) as two:
        await one.ask(count=False)
        await two.ask(count=False)
        server.stall()
        tickets = [uuid4().hex for _ in range(5)]
        for ticket in tickets:
            assert (await one.ask(ticket=ticket)).admitted
        assert not (await two.ask()).admitted, "in Redis its script waits to be run, behind one of the first worker's"
        server.resume()
        await one.back()
        await two.back()
        assert (await two.ask(count=False)).readings[0].remaining == 0
        await one.windows.give_back([((mine,), ticket) for ticket in tickets])
        assert (await two.ask(count=False)).readings[0].remaining == 5


async def test_what_is_given_back_in_an_outage_is_free_after_it(server: OwnRedis, database_url: str) -> None:
    """A use of before the outage that is given back in it is counted by neither store."""
    async with worker(server.url, database_url, bucket()) as w:
        first = await w.ask()
        second = await w.ask()
        server.stall()
        assert (await w.ask()).readings[0].remaining == 2
        await w.windows.give_back([((w.bucket,), first.ticket)])
        assert (await w.ask(count=False)).readings[0].remaining == 3
        server.resume()
        await w.back()
        assert (await w.ask(count=False)).readings[0].remaining == 3
        await w.windows.give_back([((w.bucket,), second.ticket)])
        server.kill()
        assert (await w.ask(count=False)).readings[0].remaining == 4


async def test_nothing_fails_open(server: OwnRedis) -> None:
    """Without Redis and Postgres nobody is admitted, and the answer is that it may be repeated."""
    server.kill()
    async with worker(server.url, NOBODY, bucket()) as w:
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await w.ask()


async def test_what_counts_no_more_is_removed(server: OwnRedis, database_url: str) -> None:
    """The cleaner leaves no use in Postgres whose window is over, and every one that still counts."""
    server.kill()
    short = Bucket(Rule("short", 5, 1), "client")
    async with worker(server.url, database_url, bucket()) as w, anyio.create_task_group() as aside:
        await w.admitted(2)
        await w.windows.decide([WindowRequest((short,), count=True, ticket=str(number)) for number in range(3)])
        await anyio.sleep(1.01)  # the window of one second, by the database's clock
        aside.start_soon(w.windows.cleaning)
        with anyio.fail_after(3):
            while rows(database_url) != 2:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.01)
        aside.cancel_scope.cancel()


async def test_no_client_is_named_in_postgres(server: OwnRedis, database_url: str) -> None:
    """The rows hold digests of what they count, no address of a client."""
    server.kill()
    async with worker(server.url, database_url, Bucket(RULE, "192.0.2.7")) as w:
        await w.ask()
    with psycopg.connect(database_url) as connection:
        assert "192.0.2.7" not in str(connection.execute("SELECT * FROM window_uses").fetchall())


def rows(database_url: str) -> int:
    """Return how many uses Postgres holds."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT count(*) FROM window_uses").fetchone()
    return int(row[0]) if row else 0
