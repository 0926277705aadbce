from __future__ import annotations

import random
from math import ceil
from typing import TYPE_CHECKING

import anyio
import psycopg
import pytest
import redis as sync_redis

from actors.domain.tally import Tally, WorkerReport, summed, together
from actors.domain.windows import Admission, Reading, Rule
from actors.kit.mailbox import Letter
from actors.kit.supervisor import Supervisor
from actors.metrics_aggregator import MetricsAggregator, Observation, Tick
from actors.metrics_ports import Business, Machinery, MailQueue, Metrics
from actors.rate_limiter import Decisions
from service.adapters.postgres import Postgres
from service.adapters.postgres_metrics import PostgresMetrics
from service.adapters.redis_client import Redis
from service.adapters.redis_metrics import PREFIX, RedisMetrics
from service.http.exposition import COUNTERS, LEVELS, exposition
from service.machinery import machinery
from service.metrics_reader import REDIS_AWAY, Reader

if TYPE_CHECKING:
    from collections.abc import Mapping

ROUTES = ("POST /api/v1/users/register", "POST /api/v1/users/activate", "GET /livez")
STATUSES = (200, 201, 401, 503)
BOOKED = """
INSERT INTO business_counts (day, worker, registrations, activations, resends, mails_accepted, mails_dead)
VALUES ('2026-01-01', 'a', 10, 3, 2, 0, 0), ('2026-01-02', 'a', 1, 0, 0, 0, 0), ('2026-01-02', 'mail', 0, 0, 0, 8, 1)
"""
ACCOUNT = """
INSERT INTO users (id, email_key, email, password_hash, locale, registration_id, registered_at, code_id,
                   code_expires_at, codes_issued)
VALUES (gen_random_uuid(), 'a@example.com', 'a@example.com', 'x', 'en', gen_random_uuid(), now(), 'k', now(), '{}')
"""
MAILS = """
INSERT INTO mails (id, user_id, code_id, locale, state, created_at, accepted_at, reason)
SELECT gen_random_uuid(), users.id, 'k', 'en', state, now() - age, now() - age + took, reason FROM users, (
    VALUES ('queued', interval '90 s', NULL::interval, NULL), ('queued', '10 s', NULL, '451 later'),
           ('sending', '200 s', NULL, NULL),
           ('dead', '1 d', NULL, '550 mailbox'), ('dead', '1 d', NULL, '550 mailbox'), ('dead', '1 d', NULL, NULL),
           ('accepted', '3 h', '1 s', NULL)
    UNION ALL SELECT 'accepted', '10 min', n * interval '100 ms', NULL FROM generate_series(1, 100) AS n
) AS made (state, age, took, reason)
"""
FOLDED = "SELECT count(*) FROM metrics_workers WHERE worker = ANY(%(workers)s) AND totals = folded"
AGE = "UPDATE metrics_workers SET seen_at = seen_at - interval '2 hours' WHERE worker = ANY(%(workers)s)"


class SwitchedRedis(RedisMetrics):
    """The adapter behind a switch: `away` leads its calls to a port where nobody listens."""

    def __init__(self, redis: Redis, nobody: Redis) -> None:
        super().__init__(redis)
        self._both = (redis, nobody)

    def switch(self, *, away: bool) -> None:
        """Cut the way to Redis or mend it."""
        self._redis = self._both[away]


class Generator:
    """Feeds many aggregators and keeps its own, exact count."""

    def __init__(self, quick: RedisMetrics, ledger: PostgresMetrics) -> None:
        self.quick = quick
        self.ledger = ledger
        self.dice = random.Random(7)  # noqa: S311 - the same figures in every run
        self.counts: dict[str, int] = {}
        self.latencies: dict[str, list[float]] = {}
        self.born = 0
        self.workers = [self.worker() for _ in range(8)]

    def worker(self) -> MetricsAggregator:
        """Start an aggregator with an epoch of its own."""
        self.born += 1
        return MetricsAggregator(Tally(f"api-{self.born}"), self.quick, self.ledger, Machinery)

    async def second(self) -> None:
        """Let each aggregator count some requests and write."""
        for worker in self.workers:
            letters: list[Letter[Observation | Tick]] = [
                Letter(self.observation()) for _ in range(self.dice.randrange(60))
            ]
            await worker.handle([*letters, Letter(Tick())])

    def observation(self) -> Observation:
        """Make a request and count it."""
        route, status = self.dice.choice(ROUTES), self.dice.choice(STATUSES)
        took = self.dice.lognormvariate(3, 1.5)
        name = f"requests|{route}|{status}"
        self.counts[name] = self.counts.get(name, 0) + 1
        self.latencies.setdefault(route, []).append(took)
        return Observation(route, status, took)

    def kill(self, number: int) -> None:
        """Drop an aggregator without a word, as after kill -9 right behind its tick, and start another."""
        self.workers[number] = self.worker()

    async def recycle(self, number: int) -> None:
        """Replace an aggregator as the master does."""
        await self.workers[number].stopped()
        self.workers[number] = self.worker()

    async def read(self) -> Metrics:
        """Read as a process that has counted nothing."""
        return await Reader(Tally("reader"), self.quick, self.ledger, self.ledger).read()

    def matches(self, metrics: Metrics) -> None:
        """Assert that what was read is what was generated."""
        assert {name: n for name, n in metrics.totals.items() if name.startswith("requests|")} == self.counts
        for route, took in self.latencies.items():
            sketch = metrics.latencies[route]
            assert sketch.count == len(took)
            assert (sketch.low, sketch.high) == pytest.approx((min(took), max(took)))
            for share in (0.5, 0.95, 0.99):
                exact = sorted(took)[ceil(share * len(took)) - 1]
                assert sketch.quantile(share) == pytest.approx(exact, rel=0.01)


async def test_counters_are_exact_through_kills_recycling_a_wipe_and_an_outage(
    redis_url: str, database_url: str
) -> None:
    """Eight workers, kills, a FLUSHALL, an outage: counters equal the generator's, percentiles are within 1 %."""
    async with (
        Redis.open(redis_url) as redis,
        Redis.open("redis://127.0.0.1:23998") as nobody,
        Postgres.open(database_url) as postgres,
    ):
        quick = SwitchedRedis(redis, nobody)
        house = Generator(quick, PostgresMetrics(postgres))
        for second in range(40):
            quick.switch(away=15 <= second < 22)
            await house.second()
            if second % 3 == 0:
                house.kill(house.dice.randrange(8))
            if second % 7 == 0:
                await house.recycle(house.dice.randrange(8))
            if second in {9, 18, 30}:
                wipe(redis_url)
            if second == 25:
                await fold_everything_gone(house, postgres)
            if second % 5 == 0:
                house.matches(await house.read())
        house.matches(await house.read())
        quick.switch(away=True)
        without_redis = await house.read()
        house.matches(without_redis)
        assert without_redis.notes == [REDIS_AWAY]


def wipe(url: str) -> None:
    """FLUSHALL."""
    with sync_redis.Redis.from_url(url) as client:
        client.flushall()


async def fold_everything_gone(house: Generator, postgres: Postgres) -> None:
    """Make every gone worker old enough to be folded, and fold."""
    alive = {worker._tally.worker for worker in house.workers}  # noqa: SLF001 - the test's own objects
    gone = [f"api-{number}" for number in range(1, house.born + 1) if f"api-{number}" not in alive]
    await postgres.run(AGE, {"workers": gone})
    await house.ledger.compact(0)
    rows = await postgres.run(
        "SELECT count(*) FROM metrics_workers WHERE worker = ANY(%(w)s) AND totals = folded", {"w": gone}
    )
    assert rows == [(len(gone),)]


async def test_redis_memory_grows_with_routes_and_not_with_requests(redis_url: str, database_url: str) -> None:
    """Ten times the requests leave the same keys, each with an expiry, and less than 8 KB a worker."""
    async with Redis.open(redis_url) as redis, Postgres.open(database_url) as postgres:
        worker = MetricsAggregator(Tally("w"), RedisMetrics(redis), PostgresMetrics(postgres))
        sizes = []
        for amount in (1000, 10_000):
            took: list[Letter[Observation | Tick]] = [
                Letter(Observation(ROUTES[0], 201, 1 + number % 200)) for number in range(amount)
            ]
            await worker.handle([*took, Letter(Tick())])
            sizes.append(footprint(redis_url))
        assert set(sizes[0]) == set(sizes[1])
        assert sum(sizes[1].values()) < 8192


def footprint(url: str) -> Mapping[str, int]:
    """Return the bytes of each key of the metrics; every one but the two indexes must expire."""
    with sync_redis.Redis.from_url(url, decode_responses=True) as client:
        keys = [str(key) for key in client.scan_iter(match=f"{PREFIX}*")]
        lasting = {key for key in keys if client.ttl(key) == -1}
        assert lasting == {f"{PREFIX}workers", f"{PREFIX}slices"}
        return {key: int(client.memory_usage(key) or 0) for key in keys}


async def test_parallel_compactions_count_every_worker_once(database_url: str) -> None:
    """Sixteen compactions at once neither lose nor double what twenty gone workers have counted."""
    async with Postgres.open(database_url, size=16) as postgres:
        ledger = PostgresMetrics(postgres)
        names = [f"w{number}" for number in range(20)]
        for name in names:
            await ledger.write(WorkerReport(name, 1, {"requests|GET /|200": 3}, leaving=True))
        await postgres.run(AGE, {"workers": names})
        async with anyio.create_task_group() as group:
            for _ in range(16):
                group.start_soon(ledger.compact, 0)
        rows = await postgres.run("SELECT totals ->> 'requests|GET /|200' FROM metrics_workers WHERE worker = ''")
        assert rows == [("60",)]


async def test_a_folded_worker_that_wakes_goes_on_where_it_was(database_url: str) -> None:
    """A worker that was only asleep for two hours is counted once, and what it counts later is added."""
    async with Postgres.open(database_url) as postgres:
        ledger = PostgresMetrics(postgres)
        for version, count in enumerate((3, 5, 9)):
            await ledger.write(WorkerReport("sleeper", version, {"requests|GET /|200": count}))
            assert await requests_in(ledger) == count
            await postgres.run(AGE, {"workers": ["sleeper"]})
            await ledger.compact(0)
            assert await requests_in(ledger) == count


async def requests_in(ledger: PostgresMetrics) -> float:
    """Return the one total."""
    holdings = await ledger.read(0)
    return summed(together(holdings.reports).values(), holdings.folded)["requests|GET /|200"]


async def test_the_books_show_business_and_the_mail_queue(database_url: str) -> None:
    """Counters are summed over days and workers; the queue's depth, age, deaths and delays come from mails."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(BOOKED)
        connection.execute(ACCOUNT)
        connection.execute(MAILS)
    async with Postgres.open(database_url) as postgres:
        books = PostgresMetrics(postgres)
        assert await books.business() == Business(11, 3, 2, 8, 1)
        queue = await books.mail()
    assert (queue.queued, queue.sending) == (2, 1)
    assert queue.oldest_queued_seconds == pytest.approx(90, abs=5)
    assert queue.dead == {"550 mailbox": 2, "unknown": 1}
    delays = queue.time_to_accept
    assert delays.count == 100
    assert delays.p50 == pytest.approx(5050)
    assert delays.p99 == pytest.approx(9901)


async def test_empty_books_are_zeros_and_nothing_is_made_up(database_url: str) -> None:
    """Without a mail there are no percentiles."""
    async with Postgres.open(database_url) as postgres:
        books = PostgresMetrics(postgres)
        assert await books.business() == Business()
        assert await books.mail() == MailQueue()


async def test_all_that_the_machinery_reports_is_exported(redis_url: str, database_url: str) -> None:
    """Every level and counter of a running process has its line for Prometheus."""
    async with Redis.open(redis_url) as redis, Postgres.open(database_url) as postgres:
        supervisor = Supervisor(lambda *_: None)
        quick, ledger = RedisMetrics(redis), PostgresMetrics(postgres)
        supervisor.employ(lambda: MetricsAggregator(Tally("w"), quick, ledger))
        decisions = Decisions()
        for remaining in (1, 0):
            reading = Reading(Rule("register", 5, 3600), remaining, 1.0)
            decisions.note(Admission.read("ticket", admitted=bool(remaining), readings=[reading]))
        found = machinery(supervisor, decisions, postgres, redis, {"log_lines_dropped": 3})
    assert {name.partition("|")[0] for name in found.levels} == set(LEVELS)
    assert {name.partition("|")[0] for name in found.counters} == set(COUNTERS)
    shown = Metrics(found.counters, {"w": found.levels}, {}, Business(), MailQueue(), 1)
    lines = exposition(shown, openmetrics=False).splitlines()
    assert 'vestibule_actor_mailbox_depth{actor="MetricsAggregator"} 0' in lines
    assert {"vestibule_log_lines_dropped_total 3", "vestibule_forwarded_untrusted_total 0"} <= set(lines)
