"""Measures what the metrics keep after a day of traffic, in Redis and in PostgreSQL: it must not grow with the traffic.

The observations go through the real aggregators and adapters, on servers of the bench's own; only time is simulated, a
minute a round: workers are recycled and killed as they would be, and every key grows older by a minute, so that what
expires does so.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

import anyio
import redis as sync_redis

from actors.domain.totals import SLICE_SECONDS, Totals, summed, together
from actors.kit.mailbox import Envelope
from actors.metrics_aggregator import MetricsAggregator, Tick
from actors.metrics_ports import RuntimeStatistics
from service.embedded.postgres import EmbeddedPostgres
from service.embedded.redis import EmbeddedRedis
from service.postgres.metrics import PostgresMetrics
from service.postgres.migrations import migrate
from service.postgres.pool import Postgres
from service.processes.spawn import fork
from service.redis.client import Redis
from service.redis.metrics import PREFIX, RedisMetrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.embedded.launcher import ServerProcess

STATUSES = (200, 200, 200, 200, 401, 429, 503)
LEVELS, COUNTERS = 40, 60  # of the runtime, about as many as a worker has
STATISTICS = RuntimeStatistics(
    {f"level|{n}": 1.0 for n in range(LEVELS)}, {f"counter|{n}": 1.0 for n in range(COUNTERS)}
)
KILLED = 0.1  # of the workers that end do so without a word
SHOWN = (1, 2, 4, 8, 12, 16, 20, 24)  # hours
OLDER = "UPDATE vestibule.metrics_workers SET seen_at = seen_at - interval '1 minute' WHERE worker <> ''"
SIZES = """
SELECT (SELECT count(*) FROM vestibule.metrics_workers), (SELECT count(*) FROM vestibule.metrics_slices),
       (SELECT sum(octet_length(histogram) + octet_length(route) + octet_length(worker) + 40)
        FROM vestibule.metrics_slices)
"""


@dataclass(slots=True)
class Worker:
    """One API worker: its totals, its aggregator, and the requests after which it is replaced."""

    totals: Totals
    aggregator: MetricsAggregator
    left: int


class Day:
    """A day of traffic over the real stores."""

    def __init__(self, live_store: RedisMetrics, lasting: PostgresMetrics, options: argparse.Namespace) -> None:
        self._live_store = live_store
        self._lasting = lasting
        self._options = options
        self._dice = random.Random(7)  # noqa: S311 - the same day in every run
        self.now = 1_800_000_000.0
        self.counted = self.born = 0
        self._routes = [f"GET /api/v1/resources/{number}" for number in range(options.routes)]
        self._took = [self._dice.lognormvariate(2 + number % 5, 1.2) for number in range(100_003)]
        self._place = 0
        self.workers = [self._worker() for _ in range(options.workers)]

    def _worker(self) -> Worker:
        self.born += 1
        totals = Totals(f"api-{1 + self.born % self._options.workers}.{self.born:08x}")
        aggregator = MetricsAggregator(totals, self._live_store, self._lasting, lambda: STATISTICS, lambda: self.now)
        return Worker(totals, aggregator, self._options.max_requests)

    async def minute(self, requests: int) -> None:
        """Let each worker count its share and write, replace those that have served their time."""
        for place in range(len(self.workers)):
            share = requests // len(self.workers)
            while share > 0:
                worker = self.workers[place]
                part = min(share, worker.left)
                worker.totals.count(self._observations(part), self.now)
                worker.left -= part
                share -= part
                self.counted += part
                await worker.aggregator.handle([Envelope(Tick())])
                if not worker.left:
                    if self._dice.random() >= KILLED:
                        await worker.aggregator.stopped()
                    self.workers[place] = self._worker()
        self.now += SLICE_SECONDS

    def _observations(self, count: int) -> list[tuple[str, int, float]]:
        places = range(self._place, self._place + count)
        self._place += count
        routes, took = self._routes, self._took
        return [(routes[n % len(routes)], STATUSES[n % len(STATUSES)], took[n % len(took)]) for n in places]

    def live(self) -> set[str]:
        """Return the names of the workers that run."""
        return {worker.totals.worker for worker in self.workers}


def grow_older(client: Any, live: set[str]) -> None:  # noqa: ANN401 - redis-py's types are of both of its clients
    """Take a minute off every key that expires; workers that run have renewed their sign of life meanwhile."""
    keys = [key for key in client.scan_iter(match=f"{PREFIX}*", count=1000) if _lasts_not(key, live)]
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.ttl(key)
        left = pipe.execute()
        for key, seconds in zip(keys, left, strict=True):
            if seconds >= 0:
                pipe.expire(key, max(0, seconds - SLICE_SECONDS))
        pipe.execute()


def _lasts_not(key: bytes, live: set[str]) -> bool:
    return key.decode().removeprefix(f"{PREFIX}alive:") not in live


def redis_sizes(client: Any) -> tuple[int, int, float]:  # noqa: ANN401 - as above
    """Return the number of the metrics' keys, their bytes by MEMORY USAGE, and the server's used memory in MB."""
    keys = list(client.scan_iter(match=f"{PREFIX}*", count=1000))
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.memory_usage(key, samples=0)
        sizes = [size or 0 for size in pipe.execute()]
    return len(keys), sum(sizes), client.info("memory")["used_memory"] / 1e6


async def run(options: argparse.Namespace, redis_url: str, database_url: str) -> None:
    """Live through the hours and print what is kept at some of them."""
    async with AsyncExitStack() as stack:
        live_store = RedisMetrics(await stack.enter_async_context(Redis.open(redis_url)))
        postgres = await stack.enter_async_context(Postgres.open(database_url))
        client = stack.enter_context(sync_redis.Redis.from_url(redis_url))
        lasting = PostgresMetrics(postgres)
        day = Day(live_store, lasting, options)
        empty = redis_sizes(client)[2]
        print(f"empty Redis: {empty:.2f} MB used")
        print(
            f"{'hour':>4}{'observations':>14}{'workers so far':>16}{'keys':>7}{'keys MB':>9}{'used MB':>9}  PostgreSQL"
        )
        minutes, begun = options.hours * 60, process_time()
        for minute in range(1, minutes + 1):
            await day.minute(options.observations * minute // minutes - day.counted)
            grow_older(client, day.live())
            await postgres.run(OLDER)
            if minute % 60 == 0 and minute // 60 in {*SHOWN, options.hours}:
                keys, size, used = redis_sizes(client)
                ((workers, slices, held),) = await postgres.run(SIZES)
                print(
                    f"{minute // 60:4}{day.counted:14,}{day.born:16}{keys:7}{size / 1e6:9.2f}{used - empty:9.2f}"
                    f"  {workers} workers, {slices} histograms, {int(held or 0) / 1e6:.2f} MB",
                    flush=True,
                )
        await check(day, lasting)
        print(f"CPU of the aggregators: {1e6 * (process_time() - begun) / day.counted:.1f} µs an observation")


async def check(day: Day, lasting: PostgresMetrics) -> None:
    """End the run with a line unless every observation is still counted."""
    stored = await lasting.read(0, [worker.totals.worker for worker in day.workers])
    totals = summed(together(stored.reports).values(), stored.folded)
    counted = sum(number for name, number in totals.items() if name.startswith("requests|"))
    if counted != day.counted:
        raise SystemExit(f"counted {counted:,.0f} of {day.counted:,}")
    print(f"all {day.counted:,} observations are in the totals")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, start servers, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--observations", type=int, default=10_000_000)
    parser.add_argument("--routes", type=int, default=30)
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--max-requests", type=int, default=10_000, help="after which a worker is replaced")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="vestibule-bench-", dir="/tmp") as folder, ExitStack() as undo:
        redis_server, postgres = EmbeddedRedis(Path(folder)), EmbeddedPostgres(Path(folder))
        for server in (redis_server, postgres):
            undo.callback(end, server, begin(server))
        migrate(postgres.url)
        anyio.run(run, options, redis_server.url, postgres.url)


def begin(server: ServerProcess) -> int:
    """Start a server and return its pid once it answers."""
    parent = os.getpid()
    pid = fork(lambda: server.become(parent))
    server.wait_ready(pid)
    return pid


def end(server: ServerProcess, pid: int) -> None:
    """Stop it."""
    os.kill(pid, server.stop_signal)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
