"""The MetricsAggregator and the reader over stores in memory, with kills, outages and wipes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import pytest

from actors.domain.totals import SLICE_SECONDS, WINDOW_SECONDS, Totals, slice_of
from actors.kit.mailbox import Address, Envelope, Mailbox
from actors.kit.supervisor import Supervisor
from actors.metrics_aggregator import MetricsAggregator, Observation, Tick, ticking
from actors.metrics_ports import Business, RuntimeStatistics
from actors.ports import StoreUnavailable
from service.telemetry.reader import DATABASE_AWAY, FRESH_SECONDS, REDIS_AWAY, Reader
from tests.fakes.metrics import MemoryLastingStore, MemoryLiveStore

if TYPE_CHECKING:
    from actors.metrics_ports import Metrics

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

    async def read(self, by: Worker | None = None) -> Metrics:
        """Read as a worker does, or as one that has counted nothing itself."""
        totals = by.totals if by else Totals("reader")
        return await Reader(totals, self.live, self.lasting, self.lasting, lambda: self.now).read()


class Worker:
    """The totals of a worker and the aggregator that feeds it."""

    def __init__(self, site: Site, totals: Totals) -> None:
        self.totals = totals
        self.aggregator = MetricsAggregator(totals, site.live, site.lasting, lambda: site.runtime, lambda: site.now)

    async def observe(self, *latencies: float, route: str = REGISTER, status: int = 201, tick: bool = True) -> None:
        """Count requests, and write if `tick`."""
        messages: list[Observation | Tick] = [Observation(route, status, each) for each in latencies]
        await self.aggregator.handle([Envelope(message) for message in (*messages, *([Tick()] if tick else []))])

    async def tick(self) -> None:
        """Let a second pass for the aggregator."""
        await self.observe()


def requests(metrics: Metrics) -> dict[str, float]:
    """Return the request totals alone."""
    return {name: value for name, value in metrics.totals.items() if name.startswith("requests|")}


async def test_totals_of_all_workers_are_summed_and_their_latencies_merged() -> None:
    """Two workers' requests are counted together, by route and status, in buckets and in one histogram."""
    site = Site()
    one, two = site.worker("one"), site.worker("two")
    await one.observe(10, 20)
    await two.observe(30, 40, 5000.5)
    await two.observe(1, route=ACTIVATE, status=401)
    metrics = await site.read()
    assert requests(metrics) == {f"requests|{REGISTER}|201": 5, f"requests|{ACTIVATE}|401": 1}
    assert metrics.totals[f"bucket|{REGISTER}|10"] == 1
    assert metrics.totals[f"bucket|{REGISTER}|10000"] == 1
    assert metrics.totals[f"sum|{REGISTER}"] == 5100.5
    histogram = metrics.latencies[REGISTER]
    assert (histogram.count, histogram.low, histogram.high) == (5, 10, 5000.5)
    assert histogram.quantile(0.5) == pytest.approx(30, rel=0.01)
    assert metrics.workers == 3


async def test_a_workers_own_requests_are_counted_before_it_has_written_them() -> None:
    """The worker that answers adds what it alone knows yet."""
    site = Site()
    worker = site.worker()
    await worker.observe(10, tick=False)
    metrics = await site.read(worker)
    assert requests(metrics) == {f"requests|{REGISTER}|201": 1}
    assert metrics.latencies[REGISTER].count == 1


async def test_writing_again_changes_nothing() -> None:
    """Repeated ticks leave every figure as it is."""
    site = Site()
    worker = site.worker()
    await worker.observe(10, 20)
    before = await site.read()
    for _ in range(5):
        await worker.tick()
    after = await site.read()
    assert after.totals == before.totals
    assert after.latencies[REGISTER].buckets == before.latencies[REGISTER].buckets


async def test_a_wiped_live_store_is_whole_again_after_one_tick() -> None:
    """The next write brings back all totals; slices are no business of this store."""
    site = Site()
    worker = site.worker()
    await worker.observe(10)
    site.live.reports.clear()
    await worker.tick()
    assert site.live.reports["api-1"].totals == worker.totals.totals()


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
    assert requests(await site.read()) == {f"requests|{REGISTER}|201": 5}


async def test_an_idle_worker_writes_to_the_lasting_store_now_and_then() -> None:
    """Without requests it shows there that it lives, but not each second; to the live store it writes each second."""
    site = Site()
    worker = site.worker()
    for _ in range(20):
        await worker.tick()
        site.now += 1
    assert (site.live.writes, site.lasting.writes) == (20, 2)


@pytest.mark.parametrize("away", ["live", "lasting"])
async def test_with_one_store_away_the_other_answers(away: str) -> None:
    """Counters of all workers go on; business stays as last read, and the metrics say what is away."""
    site = Site()
    site.lasting.business_counts = Business(registrations=7)
    worker = site.worker()
    reader = Reader(Totals("reader"), site.live, site.lasting, site.lasting, lambda: site.now)
    await reader.read()
    getattr(site, away).away = True
    await worker.observe(10)
    await worker.observe(20)
    site.now += FRESH_SECONDS
    metrics = await reader.read()
    assert requests(metrics) == {f"requests|{REGISTER}|201": 2}
    assert metrics.workers == 2
    assert metrics.business.registrations == 7
    assert metrics.notes == [REDIS_AWAY if away == "live" else DATABASE_AWAY]
    assert metrics.latencies.keys() == ({REGISTER} if away == "live" else set())


async def test_with_both_stores_away_the_reading_process_tells_how_it_stands() -> None:
    """What it finds away is shown now, while no store can show it."""
    site = Site()
    standing = RuntimeStatistics({"breaker_open|postgres": 0.0})
    reader = Reader(Totals("r"), site.live, site.lasting, site.lasting, lambda: site.now, runtime=lambda: standing)
    await reader.read()
    site.lasting.away = site.live.away = True
    standing = RuntimeStatistics({"breaker_open|postgres": 1.0})
    site.now += FRESH_SECONDS
    assert (await reader.read()).levels == {"r": {"breaker_open|postgres": 1.0}}


async def test_a_process_that_never_saw_the_database_refuses_instead_of_answering_zeros() -> None:
    """Without the lasting store and without a memory of it nothing is made up."""
    site = Site()
    site.lasting.away = True
    with pytest.raises(StoreUnavailable):
        await site.read()


async def test_with_both_stores_away_counting_goes_on_and_is_written_later() -> None:
    """Nothing that was counted during an outage of everything is lost."""
    site = Site()
    worker = site.worker()
    site.live.away = site.lasting.away = True
    await worker.observe(10, 20)
    site.live.away = site.lasting.away = False
    await worker.observe(30)
    assert requests(await site.read()) == {f"requests|{REGISTER}|201": 3}


async def test_a_killed_worker_stays_counted_through_a_wipe() -> None:
    """What a worker wrote at its last tick is in the lasting store too."""
    site = Site()
    await site.worker("killed").observe(10, 20)
    site.live.reports.clear()
    assert requests(await site.read()) == {f"requests|{REGISTER}|201": 2}


async def test_a_worker_that_died_while_the_database_was_away_is_taken_over() -> None:
    """The others enter what it left in the live store into the lasting one; nothing is counted twice meanwhile."""
    site = Site()
    site.lasting.away = True
    await site.worker("killed").observe(10, 20)
    site.lasting.away = False
    site.live.silent.add("killed")
    assert requests(await site.read()) == {f"requests|{REGISTER}|201": 2}
    await site.worker("alive").tick()
    assert "killed" not in site.live.reports
    site.live.reports.clear()
    assert requests(await site.read()) == {f"requests|{REGISTER}|201": 2}


async def test_folding_counts_a_worker_once_even_if_it_wakes_again() -> None:
    """A worker that was silent for long is summed up, and goes on from there when it was only asleep."""
    site = Site()
    sleeper = site.worker("sleeper")
    await sleeper.observe(10, 20)
    site.lasting.silent.add("sleeper")
    await site.worker("other").tick()
    assert requests(await site.read()) == {f"requests|{REGISTER}|201": 2}
    await sleeper.observe(30)
    assert requests(await site.read()) == {f"requests|{REGISTER}|201": 3}
    site.now += 60
    await site.worker("third").tick()
    assert requests(await site.read()) == {f"requests|{REGISTER}|201": 3}


@pytest.mark.parametrize("trouble", ["", "live", "lasting", "forgetting"])
async def test_a_worker_that_stops_writes_for_the_last_time(trouble: str) -> None:
    """What no tick has written is there, counts once and is alive no more, whichever store is away at the end."""
    site = Site()
    worker = site.worker()
    await worker.observe(10)
    await worker.observe(20, tick=False)
    site.live.away, site.lasting.away = trouble == "live", trouble == "lasting"
    site.live.unforgetful = trouble == "forgetting"
    await worker.aggregator.stopped()
    site.live.away = site.lasting.away = False
    assert ("api-1" in site.live.reports) == bool(trouble)
    site.live.silent.add("api-1")
    metrics = await site.read()
    assert requests(metrics) == {f"requests|{REGISTER}|201": 2}
    assert metrics.workers == 1


async def test_latencies_leave_the_window_and_totals_do_not() -> None:
    """After an hour a latency is forgotten by all, its count is not, also with the live store away."""
    site = Site()
    site.live.away = True
    worker = site.worker()
    await worker.observe(10)
    site.now += WINDOW_SECONDS + SLICE_SECONDS
    await worker.observe(20, route=ACTIVATE)
    metrics = await site.read()
    assert set(metrics.latencies) == {ACTIVATE}
    assert metrics.totals[f"requests|{REGISTER}|201"] == 1
    assert {start for start, _ in site.lasting.slices} == {slice_of(site.now)}


async def test_levels_are_those_of_live_workers() -> None:
    """A level is the newest that its worker has written; those of a silent worker are not shown."""
    site = Site(runtime=RuntimeStatistics({"mailbox_waiting|a": 3}, {"restarts|a": 2}))
    worker = site.worker("one")
    await worker.tick()
    await site.worker("two").tick()
    site.runtime = RuntimeStatistics({"mailbox_waiting|a": 1}, {"restarts|a": 0})
    await worker.tick()
    site.live.silent.add("two")
    metrics = await site.read()
    assert metrics.totals["restarts|a"] == 4
    assert metrics.levels["one"] == {"mailbox_waiting|a": 1}
    assert "two" not in metrics.levels


async def test_the_ticking_loop_writes_each_second_and_the_supervisor_the_rest(autojump_clock: object) -> None:
    """Under a supervisor the totals are in the store after a second, and complete after the drain."""
    del autojump_clock
    site = Site()
    totals = Totals("api-1")
    supervisor = Supervisor(lambda *_: None)
    address = supervisor.start(lambda: MetricsAggregator(totals, site.live, site.lasting))
    async with supervisor.running(), anyio.create_task_group() as group:
        group.start_soon(ticking, address)
        address.offer(Observation(REGISTER, 201, 10))
        await anyio.sleep(1.5)
        assert requests(await site.read()) == {f"requests|{REGISTER}|201": 1}
        address.offer(Observation(REGISTER, 201, 10))
        group.cancel_scope.cancel()
    assert site.lasting.reports["api-1"].totals[f"requests|{REGISTER}|201"] == 2


async def test_many_ticks_that_waited_are_one_write() -> None:
    """Ticks that piled up behind a stalled store cost one write."""
    site = Site()
    worker = site.worker()
    await worker.aggregator.handle([Envelope(Tick()) for _ in range(50)])
    assert site.live.writes == 1


async def test_an_overflow_of_observations_is_dropped_and_counted_by_the_mailbox() -> None:
    """Offers beyond the capacity never wait and are counted."""
    address = Address(Mailbox(MetricsAggregator.capacity))
    for _ in range(MetricsAggregator.capacity + 10):
        address.offer(Observation(REGISTER, 201, 1))
    assert address.mailbox.dropped == 10


async def test_readers_at_the_same_time_share_one_reading() -> None:
    """A second read within the fresh time is the same object; a later one is not."""
    site = Site()
    reader = Reader(Totals("reader"), site.live, site.lasting, site.lasting, lambda: site.now)
    first = await reader.read()
    assert await reader.read() is first
    site.now += FRESH_SECONDS
    assert await reader.read() is not first
