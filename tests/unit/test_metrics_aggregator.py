"""The MetricsAggregator and the reader over stores in memory, with kills, outages and wipes."""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio
import pytest

from actors.domain.totals import SLICE_SECONDS, WINDOW_SECONDS, Totals, slice_of
from actors.kit.mailbox import Envelope
from actors.kit.supervisor import Supervisor
from actors.metrics_aggregator import MetricsAggregator, Observation, Tick, ticking
from actors.metrics_ports import Business, RuntimeStatistics
from actors.ports import StoreUnavailable
from service.telemetry.reader import DATABASE_AWAY, FRESH_SECONDS, REDIS_AWAY, Reader
from tests.fakes.metrics import MemoryLastingStore, MemoryLiveStore

REGISTER = "POST /api/v1/users/register"
ACTIVATE = "POST /api/v1/users/activate"


@dataclass
class Site:
    """Two stores, a clock, and workers over them."""

    live: MemoryLiveStore = field(default_factory=MemoryLiveStore)
    lasting: MemoryLastingStore = field(default_factory=MemoryLastingStore)
    now: float = 1_000_000.0
    runtime: RuntimeStatistics = field(default_factory=RuntimeStatistics)

    def worker(self, name: str = "api-1") -> Worker:
        """Start a worker."""
        return Worker(self, Totals(name))

    def reader(self, by: Worker | None = None) -> Reader:
        """Return how a worker reads, or one that has counted nothing itself."""
        totals = by.totals if by else Totals("reader")
        return Reader(totals, self.live, self.lasting, self.lasting, lambda: self.now, runtime=lambda: self.runtime)

    async def requests(self) -> float:
        """Read how many registrations there were, the only requests."""
        totals = (await self.reader().read()).totals
        [(name, number)] = [(name, number) for name, number in totals.items() if name.startswith("requests|")]
        assert name == f"requests|{REGISTER}|201"
        return number


class Worker:
    """The totals of a worker and the aggregator that feeds it."""

    def __init__(self, site: Site, totals: Totals) -> None:
        self.totals = totals
        self.aggregator = MetricsAggregator(totals, site.live, site.lasting, lambda: site.runtime, lambda: site.now)

    async def observe(self, *latencies: float, route: str = REGISTER, status: int = 201, ticks: int = 1) -> None:
        """Count requests, and write at a tick, or at many that have waited."""
        messages: list[Observation | Tick] = [Observation(route, status, each) for each in latencies]
        await self.aggregator.handle([Envelope(message) for message in (*messages, *[Tick()] * ticks)])


async def test_totals_of_all_workers_are_summed_and_their_latencies_merged() -> None:
    """Also what the reading worker has not written yet, by route and status, in buckets and in one histogram."""
    site = Site()
    one, two = site.worker("one"), site.worker("two")
    await one.observe(10)
    await one.observe(20, ticks=0)
    await two.observe(30, 40, 5000.5)
    await two.observe(1, route=ACTIVATE, status=401)
    metrics = await site.reader(one).read()
    assert metrics.totals.items() >= {
        (f"requests|{REGISTER}|201", 5),
        (f"requests|{ACTIVATE}|401", 1),
        (f"bucket|{REGISTER}|10", 1),
        (f"bucket|{REGISTER}|10000", 1),
        (f"sum|{REGISTER}", 5100.5),
    }
    histogram = metrics.latencies[REGISTER]
    assert (histogram.count, histogram.low, histogram.high) == (5, 10, 5000.5)
    assert histogram.quantile(0.5) == pytest.approx(30, rel=0.01)
    assert metrics.workers == 2


async def test_writing_again_changes_nothing_and_mends_a_wiped_store() -> None:
    """Repeated ticks leave every figure as it is and bring back all totals; the killed stay counted."""
    site = Site()
    worker = site.worker()
    await worker.observe(10, 20)
    await site.worker("killed").observe(30)
    before = await site.reader().read()
    site.live.reports.clear()
    for _ in range(5):
        await worker.observe()
    after = await site.reader().read()
    assert after.totals == before.totals
    assert after.latencies[REGISTER].buckets == before.latencies[REGISTER].buckets
    assert site.live.reports["api-1"].totals == worker.totals.totals()
    assert await site.requests() == 3


async def test_the_lasting_store_gets_what_has_changed_and_after_an_outage_all_that_it_lacks() -> None:
    """A tick writes the slice of this minute; closed minutes are written once, those of an outage after it."""
    site = Site()
    worker = site.worker()
    minutes = []
    for away in (False, True, True, False, False):
        site.lasting.away = away
        site.lasting.slices.clear()
        await worker.observe(10)
        minutes.append(slice_of(site.now))
        written = [start for start, _ in site.lasting.slices]
        site.now += SLICE_SECONDS
    assert written == minutes[-2:]
    assert await site.requests() == 5


async def test_an_idle_worker_writes_to_the_lasting_store_now_and_then() -> None:
    """Without requests it shows there that it lives, every ten seconds; to the live store it writes at each tick."""
    site = Site()
    worker = site.worker()
    for _ in range(21):
        await worker.observe(ticks=50)  # those that piled up behind a stalled store are one
        site.now += 1
    assert (site.live.writes, site.lasting.writes) == (21, 3)


@pytest.mark.parametrize("away", ["live", "lasting"])
async def test_with_one_store_away_the_other_answers(away: str) -> None:
    """Counters of all workers go on; business stays as last read, and the metrics say what is away."""
    site = Site()
    site.lasting.business_counts = Business(registrations=7)
    worker, reader = site.worker(), site.reader()
    first = await reader.read()
    assert await reader.read() is first  # readers at the same time share one reading
    getattr(site, away).away = True
    await worker.observe(10)
    await worker.observe(20)
    site.now += FRESH_SECONDS
    metrics = await reader.read()
    assert metrics.totals[f"requests|{REGISTER}|201"] == 2
    assert (metrics.workers, metrics.business.registrations) == (2, 7)
    assert metrics.notes == [REDIS_AWAY if away == "live" else DATABASE_AWAY]
    assert metrics.latencies.keys() == ({REGISTER} if away == "live" else set())


async def test_with_both_stores_away_counting_goes_on_and_is_written_later() -> None:
    """The reading process shows what it finds away; one that never saw the database refuses to make zeros up."""
    site = Site()
    worker, reader = site.worker(), site.reader()
    await reader.read()
    site.live.away = site.lasting.away = True
    await worker.observe(10, 20)
    site.runtime = RuntimeStatistics({"breaker_open|postgres": 1.0})
    site.now += FRESH_SECONDS
    assert (await reader.read()).levels == {"reader": {"breaker_open|postgres": 1.0}}
    with pytest.raises(StoreUnavailable):
        await site.reader().read()
    site.live.away = site.lasting.away = False
    await worker.observe(30)
    assert await site.requests() == 3


async def test_a_worker_that_died_while_the_database_was_away_is_taken_over() -> None:
    """The others enter what it left in the live store into the lasting one; nothing is counted twice meanwhile."""
    site = Site()
    site.lasting.away = True
    await site.worker("killed").observe(10, 20)
    site.lasting.away = False
    site.live.silent.add("killed")
    assert await site.requests() == 2
    await site.worker("alive").observe()
    assert "killed" not in site.live.reports
    site.live.reports.clear()
    assert await site.requests() == 2


async def test_a_worker_looks_for_what_others_left_every_half_minute() -> None:
    """At its start, and not each second."""
    site = Site()
    worker = site.worker()
    await worker.observe()
    await site.worker("killed").observe(10)
    site.live.silent.add("killed")
    for seconds, left in ((0, True), (29, True), (1, False)):
        site.now += seconds
        await worker.observe()
        assert ("killed" in site.live.reports) is left


@pytest.mark.parametrize("trouble", ["", "live", "lasting", "forgetting"])
async def test_a_worker_that_stops_writes_for_the_last_time(trouble: str) -> None:
    """What no tick has written is there, counts once and is alive no more, whichever store is away at the end."""
    site = Site()
    worker = site.worker()
    await worker.observe(10)
    await worker.observe(20, ticks=0)
    site.live.away, site.lasting.away = trouble == "live", trouble == "lasting"
    site.live.unforgetful = trouble == "forgetting"
    await worker.aggregator.stopped()
    site.live.away = site.lasting.away = False
    assert ("api-1" in site.live.reports) == bool(trouble)
    assert site.lasting.reports["api-1"].leaving == (trouble != "lasting")
    site.live.silent.add("api-1")
    assert (await site.requests(), (await site.reader().read()).workers) == (2, 1)


async def test_latencies_leave_the_window_and_totals_do_not() -> None:
    """After an hour a latency is forgotten by all, its count is not, also with the live store away."""
    site = Site()
    site.live.away = True
    worker = site.worker()
    await worker.observe(10)
    site.now += WINDOW_SECONDS + SLICE_SECONDS
    await worker.observe(20, route=ACTIVATE)
    metrics = await site.reader().read()
    assert set(metrics.latencies) == {ACTIVATE}
    assert metrics.totals[f"requests|{REGISTER}|201"] == 1
    assert {start for start, _ in site.lasting.slices} == {slice_of(site.now)}


async def test_levels_are_those_of_live_workers() -> None:
    """A level is the newest that its worker has written; those of a silent worker are not shown."""
    site = Site(runtime=RuntimeStatistics({"mailbox_waiting|a": 3}, {"restarts|a": 2}))
    worker = site.worker("one")
    await worker.observe()
    await site.worker("two").observe()
    site.runtime = RuntimeStatistics({"mailbox_waiting|a": 1}, {"restarts|a": 0})
    await worker.observe()
    site.live.silent.add("two")
    metrics = await site.reader().read()
    assert metrics.totals["restarts|a"] == 4
    assert (metrics.levels["one"], "two" in metrics.levels) == ({"mailbox_waiting|a": 1}, False)


async def test_the_ticking_loop_writes_each_second_and_the_supervisor_the_rest(autojump_clock: object) -> None:
    """Under a supervisor the totals are in the store after a second, and complete after the drain."""
    site = Site()
    supervisor = Supervisor(lambda *_: None)
    address = supervisor.start(lambda: MetricsAggregator(Totals("api-1"), site.live, site.lasting))
    async with supervisor.running(), anyio.create_task_group() as group:
        group.start_soon(ticking, address)
        for counted in (1, 2):
            address.offer(Observation(REGISTER, 201, 10))
            await anyio.sleep(1.1)
            assert await site.requests() == counted
        address.offer(Observation(REGISTER, 201, 10))
        group.cancel_scope.cancel()
    assert await site.requests() == 3
