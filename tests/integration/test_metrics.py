"""The metrics over real stores: exact through kills, recycling, wipes and outages; and the business figures."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from math import ceil
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest
import redis as sync_redis

from actors.domain.histogram import Histogram
from actors.domain.totals import SLICE_SECONDS, Totals, WorkerReport, first_slice, slice_of, summed, together
from actors.kit.mailbox import Envelope
from actors.kit.supervisor import Supervisor
from actors.metrics_aggregator import MetricsAggregator, Observation, Tick
from actors.metrics_ports import Business, MailFigures, Metrics
from service.postgres.metrics import PostgresMetrics
from service.postgres.pool import Postgres
from service.redis.client import Redis
from service.redis.metrics import PREFIX, RedisMetrics
from service.telemetry.exposition import COUNTERS, LEVELS, exposition
from service.telemetry.reader import REDIS_AWAY, Reader
from service.telemetry.runtime import runtime
from tests.fakes.metrics import MemoryLastingStore, MemoryLiveStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from actors.metrics_ports import StoredReports

NOW = 1_800_000_000.0
NOBODY = "redis://127.0.0.1:23998"
ROUTES = ("POST /api/v1/users/register", "POST /api/v1/users/activate", "GET /livez")
STATUSES = (200, 201, 401, 503)
REQUESTS = "requests|GET /|200"
COUNTED = """
INSERT INTO vestibule.business_counts
VALUES ('2026-01-01', 'a', 10, 3, 2, 0, 0), ('2026-01-02', 'a', 1, 0, 0, 0, 0), ('2026-01-02', 'mail', 0, 0, 0, 8, 1)
"""
ACCOUNT = """
INSERT INTO vestibule.accounts (id, email_key, email, password_hash, locale)
VALUES (gen_random_uuid(), 'a@example.com', 'a@example.com', 'x', 'en')
"""
MAILS = """
INSERT INTO vestibule.mails (id, account_id, registration, number, kind, state, owed_since, accepted_at, expires_at,
                             key_id, reason)
SELECT gen_random_uuid(), a.id, 1, row_number() OVER (), 'code', made.state, now() - age, now() - age + took, now(),
       'k', reason
FROM vestibule.accounts a, (
    VALUES ('queued', interval '90 s', NULL::interval, NULL), ('queued', '10 s', NULL, '451 later'),
           ('sending', '200 s', NULL, NULL),
           ('dead', '1 d', NULL, '550 mailbox'), ('dead', '1 d', NULL, '550 mailbox'), ('dead', '1 d', NULL, NULL),
           ('accepted', '3 h', '1 s', NULL)
    UNION ALL SELECT 'accepted', '10 min', n * interval '100 ms', NULL FROM generate_series(1, 100) AS n
) AS made (state, age, took, reason)
"""
AGE = "UPDATE vestibule.metrics_workers SET seen_at = seen_at - interval '2 hours' WHERE worker = ANY(%(workers)s)"
FOLDED = "SELECT count(*) FROM vestibule.metrics_workers WHERE worker = ANY(%(workers)s) AND totals = folded"
SUM = "SELECT totals ->> 'requests|GET /|200' FROM vestibule.metrics_workers WHERE worker = ''"


@pytest.fixture
async def live(valkey: str) -> AsyncIterator[RedisMetrics]:
    """Give the live store in an empty Redis."""
    async with Redis.open(valkey) as client:
        yield RedisMetrics(client)


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[Postgres]:
    """Give the access to a fresh database."""
    async with Postgres.open(database) as opened:
        yield opened


class Contract:
    """A store of either sort, real or in memory."""

    def __init__(self, store: Any) -> None:  # noqa: ANN401 - the four share what is used here
        self.store = store

    async def read(self, since: int = 0) -> StoredReports:
        """Return all that is held."""
        lasting = isinstance(self.store, PostgresMetrics | MemoryLastingStore)
        stored: StoredReports = await (self.store.read(since) if lasting else self.store.read())
        return stored

    async def write(self, worker: str, version: int, requests: int, **others: Any) -> None:  # noqa: ANN401 - as they come
        """Write a report with one total."""
        await self.store.write(WorkerReport(worker, version, {REQUESTS: requests}, **others))


@pytest.fixture
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Contract]:
    """Open a store; a server is started only for those that need one."""
    if request.param == "redis":
        async with Redis.open(request.getfixturevalue("valkey")) as client:
            yield Contract(RedisMetrics(client))
    elif request.param == "postgres":
        async with Postgres.open(request.getfixturevalue("database")) as access:
            yield Contract(PostgresMetrics(access))
    else:
        yield Contract(MemoryLiveStore() if request.param == "live in memory" else MemoryLastingStore())


LIVE, LASTING = ["live in memory", "redis"], ["lasting in memory", "postgres"]
both_sorts = pytest.mark.parametrize("store", [*LIVE, *LASTING], indirect=True)
live_only = pytest.mark.parametrize("store", LIVE, indirect=True)
lasting_only = pytest.mark.parametrize("store", LASTING, indirect=True)


def totals_of(stored: StoredReports) -> Mapping[str, float]:
    """Return the sums over all workers."""
    return summed(together(stored.reports).values(), stored.folded)


def packed(*values: float) -> bytes:
    """Return a packed histogram of the values."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram.pack()


@both_sorts
async def test_what_is_written_is_read_and_replaced(store: Contract) -> None:
    """Totals, whole and with fractions, and levels come back as they were last written, also of one that has left."""
    await store.write("gone", 1, 3, leaving=True)
    await store.write("alive", 1, 2)
    await store.store.write(WorkerReport("alive", 2, {REQUESTS: 4, "sum|GET /": 1.25}, {"mailbox_waiting|a": 2}))
    stored = await store.read()
    assert together(stored.reports)["alive"].totals == {REQUESTS: 4, "sum|GET /": 1.25}
    assert together(stored.reports)["alive"].levels == {"mailbox_waiting|a": 2}
    assert totals_of(stored)[REQUESTS] == 7
    assert stored.live == {"alive"}


@live_only
async def test_forgotten_workers_are_gone(store: Contract) -> None:
    """What another store holds is dropped, and only that."""
    await store.write("gone", 1, 3)
    await store.write("alive", 1, 4)
    await store.store.forget(["gone"])
    assert totals_of(await store.read()) == {REQUESTS: 4}


@lasting_only
async def test_slices_are_kept_beside_the_totals_until_they_leave_the_window(store: Contract) -> None:
    """A slice that a report does not name stays; one is read from its start on, also when its worker is folded."""
    old, early, late = first_slice(NOW) - SLICE_SECONDS, slice_of(NOW), slice_of(NOW) + SLICE_SECONDS
    await store.write("w", 1, 3, slices={old: {"GET /": packed(1)}, early: {"GET /": packed(1), "b": packed(2)}})
    await store.write("w", 2, 5, slices={late: {"GET /": packed(2)}}, leaving=True)
    assert set(together((await store.read()).reports)["w"].slices) == {old, early, late}
    assert together((await store.read(late)).reports)["w"].slices == {late: {"GET /": packed(2)}}
    await store.store.compact(first_slice(NOW))
    assert set(together((await store.read()).reports)["w"].slices) == {early, late}


@lasting_only
async def test_an_older_version_changes_nothing(store: Contract) -> None:
    """A write that was late on its way does not take the store back."""
    start = slice_of(NOW)
    await store.write("w", 5, 10, slices={start: {"GET /": packed(1, 2)}})
    await store.write("w", 4, 9, slices={start: {"GET /": packed(1)}})
    assert totals_of(await store.read()) == {REQUESTS: 10}
    assert together((await store.read()).reports)["w"].slices == {start: {"GET /": packed(1, 2)}}


def envelopes(seen: list[Observation]) -> list[Envelope[Observation | Tick]]:
    """Return what a worker handles within a second: requests, and the tick that ends it."""
    return [*map(Envelope[Observation | Tick], seen), Envelope(Tick())]


class SwitchedRedis(RedisMetrics):
    """The adapter behind a switch: `away` leads its calls to a port where nobody listens."""

    def __init__(self, there: Redis, nobody: Redis) -> None:
        super().__init__(there)
        self._both = (there, nobody)

    def switch(self, *, away: bool) -> None:
        """Cut the way to Redis or mend it."""
        self._redis = self._both[away]


class Generator:
    """Feeds many aggregators and keeps its own, exact count."""

    def __init__(self, live: RedisMetrics, lasting: PostgresMetrics) -> None:
        self.live = live
        self.lasting = lasting
        self.dice = random.Random(7)  # noqa: S311 - the same figures in every run
        self.counts: Counter[str] = Counter()
        self.latencies: dict[str, list[float]] = defaultdict(list)
        self.workers: dict[str, MetricsAggregator] = {}
        self.gone: list[str] = []

    async def second(self, ends: str = "") -> None:
        """Let each of eight workers count some requests and write; then one may end: killed right behind its tick."""
        while len(self.workers) < 8:
            name = f"api-{len(self.workers) + len(self.gone)}"
            self.workers[name] = MetricsAggregator(Totals(name), self.live, self.lasting)
        for worker in self.workers.values():
            await worker.handle(envelopes([self.observation() for _ in range(self.dice.randrange(60))]))
        if ends:
            self.gone.append(self.dice.choice(sorted(self.workers)))
            worker = self.workers.pop(self.gone[-1])
            if ends == "in order":
                await worker.stopped()

    def observation(self) -> Observation:
        """Make a request and count it."""
        route, status = self.dice.choice(ROUTES), self.dice.choice(STATUSES)
        took = self.dice.lognormvariate(3, 1.5)
        self.counts[f"requests|{route}|{status}"] += 1
        self.latencies[route].append(took)
        return Observation(route, status, took)

    async def read(self) -> Metrics:
        """Read as a process that has counted nothing, and see that it is what was generated."""
        metrics = await Reader(Totals("reader"), self.live, self.lasting, self.lasting).read()
        assert {name: n for name, n in metrics.totals.items() if name.startswith("requests|")} == self.counts
        for route, took in self.latencies.items():
            histogram = metrics.latencies[route]
            assert (histogram.count, histogram.low, histogram.high) == (len(took), min(took), max(took))
            for share in (0.5, 0.95, 0.99):
                exact = sorted(took)[ceil(share * len(took)) - 1]
                assert histogram.quantile(share) == pytest.approx(exact, rel=0.01)
        return metrics

    async def fold_everything_gone(self, postgres: Postgres) -> None:
        """Make every gone worker old enough to be folded, and fold."""
        await postgres.run(AGE, {"workers": self.gone})
        await self.lasting.compact(0)
        assert await postgres.run(FOLDED, {"workers": self.gone}) == [(len(self.gone),)]


async def test_metrics_are_exact_through_kills_recycling_wipes_and_an_outage(valkey: str, postgres: Postgres) -> None:
    """Eight workers at any time: counters equal the generator's, percentiles of the window are within 1 %."""
    async with Redis.open(valkey) as there, Redis.open(NOBODY) as nobody:
        live = SwitchedRedis(there, nobody)
        generator = Generator(live, PostgresMetrics(postgres))
        for second in range(40):
            live.switch(away=15 <= second < 22)
            await generator.second("killed" if second % 3 == 0 else "in order" if second % 7 == 0 else "")
            if second in {9, 18, 30}:
                await there.call(lambda r: r.flushall())
            if second == 25:
                await generator.fold_everything_gone(postgres)
            if second % 5 == 0:
                await generator.read()
        await generator.read()
        live.switch(away=True)
        assert (await generator.read()).notes == [REDIS_AWAY]


async def test_redis_memory_grows_with_routes_and_not_with_requests(
    live: RedisMetrics, valkey: str, postgres: Postgres
) -> None:
    """Ten times the requests leave the same keys, each with an expiry, and less than 4 KB a worker."""
    worker = MetricsAggregator(Totals("w"), live, PostgresMetrics(postgres))
    sizes = []
    for amount in (1000, 10_000):
        seen = [Observation(ROUTES[0], 201, 1 + number % 200) for number in range(amount)]
        await worker.handle(envelopes(seen))
        with sync_redis.Redis.from_url(valkey, decode_responses=True) as client:
            keys = [str(key) for key in client.scan_iter(match=f"{PREFIX}*")]
            assert all(int(str(client.ttl(key))) > 0 for key in keys)
            sizes.append({key: int(str(client.memory_usage(key))) for key in keys})
    assert set(sizes[0]) == set(sizes[1])
    assert sum(sizes[1].values()) < 4096


async def test_sixteen_compactions_at_once_count_every_worker_once(postgres: Postgres) -> None:
    """They neither lose nor double what twenty gone workers have counted."""
    store = PostgresMetrics(postgres)
    names = [f"w{number}" for number in range(20)]
    for name in names:
        await store.write(WorkerReport(name, 1, {REQUESTS: 3}, leaving=True))
    await postgres.run(AGE, {"workers": names})
    async with anyio.create_task_group() as group:
        for _ in range(16):
            group.start_soon(store.compact, 0)
    assert await postgres.run(SUM) == [("60",)]


async def test_a_folded_worker_that_wakes_goes_on_where_it_was(postgres: Postgres) -> None:
    """A worker that was only asleep for two hours is counted once, and what it counts later is added."""
    store = PostgresMetrics(postgres)
    for version, count in enumerate((3, 5, 9)):
        await store.write(WorkerReport("sleeper", version, {REQUESTS: count}))
        assert totals_of(await store.read(0)) == {REQUESTS: count}
        await postgres.run(AGE, {"workers": ["sleeper"]})
        await store.compact(0)
        assert totals_of(await store.read(0)) == {REQUESTS: count}
        known = await store.read(0, ["sleeper"])
        assert totals_of(known) == {REQUESTS: count}
        assert "sleeper" in together(known.reports)


async def test_business_counters_and_the_mail_queue(postgres: Postgres, database: str) -> None:
    """Counters are summed over days and workers; the queue's depth, age, deaths and delays come from its mails."""
    figures = PostgresMetrics(postgres)
    assert (await figures.business(), await figures.mail()) == (Business(), MailFigures())
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in (COUNTED, ACCOUNT, MAILS):
            connection.execute(statement)
    assert await figures.business() == Business(11, 3, 2, 8, 1)
    queue = await figures.mail()
    assert (queue.queued, queue.sending) == (2, 1)
    assert queue.oldest_queued_seconds == pytest.approx(90, abs=5)
    assert queue.dead == {"550 mailbox": 2, "unknown": 1}
    assert queue.time_to_accept.count == 100
    assert queue.time_to_accept.p50 == pytest.approx(5050)
    assert queue.time_to_accept.p99 == pytest.approx(9901)


async def test_all_runtime_statistics_are_exported(live: RedisMetrics, postgres: Postgres, valkey: str) -> None:
    """Every level and counter of a running process has its line for Prometheus."""
    async with Redis.open(valkey) as client:
        supervisor = Supervisor(lambda *_: None)
        supervisor.start(lambda: MetricsAggregator(Totals("w"), live, PostgresMetrics(postgres)))
        counted = {"log_lines_dropped": 3, "limits_admitted|register": 1, "limits_refused|register": 1}
        found = runtime(supervisor, postgres, client, counted)
    assert {name.partition("|")[0] for name in found.levels} == set(LEVELS)
    assert {name.partition("|")[0] for name in found.counters} == set(COUNTERS)
    shown = Metrics(found.counters, {"w": found.levels}, {}, Business(), MailFigures(), 1)
    lines = exposition(shown, openmetrics=False).decode().splitlines()
    assert 'vestibule_actor_mailbox_depth{actor="MetricsAggregator"} 0.0' in lines
    assert {"vestibule_log_lines_dropped_total 3.0", "vestibule_forwarded_untrusted_total 0.0"} <= set(lines)
