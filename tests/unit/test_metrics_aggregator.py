from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import pytest

from actors.domain.tally import OTHER, ROUTE_LIMIT, SLICE_SECONDS, WINDOW_SECONDS, Tally, Window, slice_of
from actors.kit.mailbox import Address, Letter, Mailbox
from actors.kit.supervisor import Supervisor
from actors.metrics_aggregator import MetricsAggregator, Observation, Tick, ticking
from actors.metrics_ports import Business, Machinery
from actors.ports import StoreUnavailable
from service.metrics_reader import DATABASE_AWAY, FRESH_SECONDS, REDIS_AWAY, Reader
from tests.fakes.metrics import MemoryLedger, MemoryQuickStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.metrics_ports import Metrics

REGISTER = "POST /api/v1/users/register"
ACTIVATE = "POST /api/v1/users/activate"


@dataclass
class House:
    """Two stores, a clock, and workers over them."""

    quick: MemoryQuickStore = field(default_factory=MemoryQuickStore)
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    now: float = 1_000_000.0
    machinery: Machinery = field(default_factory=Machinery)

    def worker(self, name: str = "api-1") -> Worker:
        """Start a worker."""
        return Worker(self, Tally(name))

    async def read(self, by: Worker | None = None) -> Metrics:
        """Read as a worker does, or as one that has counted nothing itself."""
        tally = by.tally if by else Tally("reader")
        return await Reader(tally, self.quick, self.ledger, self.ledger, lambda: self.now).read()


class Worker:
    """A tally and the aggregator that feeds it."""

    def __init__(self, house: House, tally: Tally) -> None:
        self.tally = tally
        self.aggregator = MetricsAggregator(
            tally, house.quick, house.ledger, lambda: house.machinery, lambda: house.now
        )

    async def observe(self, *latencies: float, route: str = REGISTER, status: int = 201, tick: bool = True) -> None:
        """Count requests, and write if `tick`."""
        messages: list[Observation | Tick] = [Observation(route, status, each) for each in latencies]
        await self.aggregator.handle([Letter(message) for message in (*messages, *([Tick()] if tick else []))])

    async def tick(self) -> None:
        """Let a second pass for the aggregator."""
        await self.observe()


def requests(metrics: Metrics) -> dict[str, float]:
    """Return the request totals alone."""
    return {name: value for name, value in metrics.totals.items() if name.startswith("requests|")}


async def test_totals_of_all_workers_are_summed_and_their_latencies_merged() -> None:
    """Two workers' requests are counted together, by route and status, in buckets and in one sketch."""
    house = House()
    one, two = house.worker("one"), house.worker("two")
    await one.observe(10, 20)
    await two.observe(30, 40, 5000.5)
    await two.observe(1, route=ACTIVATE, status=401)
    metrics = await house.read()
    assert requests(metrics) == {f"requests|{REGISTER}|201": 5, f"requests|{ACTIVATE}|401": 1}
    assert metrics.totals[f"bucket|{REGISTER}|10"] == 1
    assert metrics.totals[f"bucket|{REGISTER}|10000"] == 1
    assert metrics.totals[f"sum|{REGISTER}"] == 5100.5
    sketch = metrics.latencies[REGISTER]
    assert (sketch.count, sketch.low, sketch.high) == (5, 10, 5000.5)
    assert sketch.quantile(0.5) == pytest.approx(30, rel=0.01)
    assert metrics.workers == 3


async def test_a_workers_own_requests_are_counted_before_it_has_written_them() -> None:
    """The worker that answers adds what it alone knows yet."""
    house = House()
    worker = house.worker()
    await worker.observe(10, tick=False)
    metrics = await house.read(worker)
    assert requests(metrics) == {f"requests|{REGISTER}|201": 1}
    assert metrics.latencies[REGISTER].count == 1


async def test_writing_again_changes_nothing() -> None:
    """Repeated ticks leave every figure as it is."""
    house = House()
    worker = house.worker()
    await worker.observe(10, 20)
    before = await house.read()
    for _ in range(5):
        await worker.tick()
    after = await house.read()
    assert after.totals == before.totals
    assert after.latencies[REGISTER].buckets == before.latencies[REGISTER].buckets


async def test_a_wiped_quick_store_is_whole_again_after_one_tick_with_all_slices_of_the_window() -> None:
    """After a wipe the next write brings back totals and the slices of earlier minutes."""
    house = House()
    worker = house.worker()
    await worker.observe(10)
    house.now += 5 * SLICE_SECONDS
    await worker.observe(20)
    house.quick.wipe()
    await worker.tick()
    held = await house.quick.read(0)
    (report,) = held.reports
    assert report.totals == worker.tally.totals()
    assert set(report.slices) == {slice_of(1_000_000), slice_of(house.now)}


async def test_only_changed_slices_are_written_to_the_quick_store() -> None:
    """A tick writes the slice of this minute, not those that are closed and known."""
    house = House()
    worker = house.worker()
    await worker.observe(10)
    house.now += 2 * SLICE_SECONDS
    await worker.observe(20)
    house.quick.slices.clear()
    await worker.observe(30)
    assert [start for start, _ in house.quick.slices] == [slice_of(house.now)]


async def test_without_the_quick_store_the_ledger_gets_totals_and_slices_every_second() -> None:
    """While Redis is away nothing is missing from what is read, and the metrics say so."""
    house = House()
    worker = house.worker()
    house.quick.away = True
    await worker.observe(10)
    house.now += 1
    await worker.observe(20)
    metrics = await house.read()
    assert requests(metrics) == {f"requests|{REGISTER}|201": 2}
    assert metrics.latencies[REGISTER].count == 2
    assert metrics.workers == 2
    assert metrics.notes == [REDIS_AWAY]


async def test_without_the_quick_store_the_ledger_does_not_grow() -> None:
    """However long Redis is away, what has left the window is dropped."""
    house = House()
    worker = house.worker()
    house.quick.away = True
    for _ in range(3):
        await worker.observe(10)
        house.now += WINDOW_SECONDS + 2 * SLICE_SECONDS
    await worker.tick()
    assert {start for start, _ in house.ledger.slices} == set()


async def test_without_the_ledger_the_quick_store_and_the_last_reading_answer() -> None:
    """While the database is away, counters go on and business stays as last read, with a note."""
    house = House()
    house.ledger.business_counts = Business(registrations=7)
    worker = house.worker()
    reader = Reader(Tally("reader"), house.quick, house.ledger, house.ledger, lambda: house.now)
    await reader.read()
    house.ledger.away = True
    await worker.observe(10, 20)
    house.now += FRESH_SECONDS
    metrics = await reader.read()
    assert requests(metrics) == {f"requests|{REGISTER}|201": 2}
    assert metrics.business.registrations == 7
    assert metrics.notes == [DATABASE_AWAY]


async def test_with_both_stores_away_the_reading_process_tells_how_it_stands() -> None:
    """What it finds away is shown now, when nobody can be told by way of a store."""
    house = House()
    standing = Machinery({"breaker_open|postgres": 0.0})
    reader = Reader(
        Tally("reader"), house.quick, house.ledger, house.ledger, lambda: house.now, machinery=lambda: standing
    )
    await reader.read()
    house.ledger.away = house.quick.away = True
    standing = Machinery({"breaker_open|postgres": 1.0})
    house.now += FRESH_SECONDS
    assert (await reader.read()).levels == {"reader": {"breaker_open|postgres": 1.0}}


async def test_without_the_ledger_and_without_a_memory_nothing_is_made_up() -> None:
    """A process that never saw the database refuses instead of answering zeros."""
    house = House()
    house.ledger.away = True
    with pytest.raises(StoreUnavailable):
        await house.read()


async def test_with_both_stores_away_counting_goes_on_and_is_written_later() -> None:
    """Nothing that was counted during an outage of everything is lost."""
    house = House()
    worker = house.worker()
    house.quick.away = house.ledger.away = True
    await worker.observe(10, 20)
    house.quick.away = house.ledger.away = False
    await worker.observe(30)
    assert requests(await house.read()) == {f"requests|{REGISTER}|201": 3}


async def test_a_killed_worker_stays_counted_through_a_wipe() -> None:
    """What a worker wrote at its last tick is in the ledger too, so no wipe takes it back."""
    house = House()
    await house.worker("killed").observe(10, 20)
    house.quick.wipe()
    assert requests(await house.read()) == {f"requests|{REGISTER}|201": 2}


async def test_what_a_departed_worker_left_in_the_quick_store_alone_is_entered_into_the_ledger() -> None:
    """A worker that died while the database was away stays counted when the quick store has forgotten it."""
    house = House()
    house.ledger.away = True
    await house.worker("killed").observe(10, 20)
    house.ledger.away = False
    house.quick.silent.add("killed")
    await house.worker("alive").tick()
    assert "killed" not in house.quick.reports
    house.quick.wipe()
    metrics = await house.read()
    assert requests(metrics) == {f"requests|{REGISTER}|201": 2}
    assert metrics.latencies[REGISTER].count == 2


async def test_folding_counts_a_worker_once_even_if_it_wakes_again() -> None:
    """A worker that was silent for long is summed up, and goes on from there when it was only asleep."""
    house = House()
    sleeper = house.worker("sleeper")
    await sleeper.observe(10, 20)
    house.ledger.silent.add("sleeper")
    await house.worker("other").tick()
    assert requests(await house.read()) == {f"requests|{REGISTER}|201": 2}
    await sleeper.observe(30)
    assert requests(await house.read()) == {f"requests|{REGISTER}|201": 3}
    house.now += 60
    await house.worker("third").tick()
    assert requests(await house.read()) == {f"requests|{REGISTER}|201": 3}


async def test_a_worker_that_stops_writes_for_the_last_time_and_is_not_alive_any_more() -> None:
    """`stopped` writes what no tick has written; the ledger then speaks for the worker."""
    house = House()
    worker = house.worker()
    await worker.observe(10)
    await worker.observe(20, tick=False)
    await worker.aggregator.stopped()
    metrics = await house.read()
    assert requests(metrics) == {f"requests|{REGISTER}|201": 2}
    assert metrics.workers == 1
    assert not house.quick.reports


async def test_a_worker_that_stops_during_an_outage_stays_counted_by_whichever_store_is_there() -> None:
    """With one store away at the end, the other has the last report, and the quick store keeps it."""
    for away in ("quick", "ledger"):
        house = House()
        worker = house.worker()
        await worker.observe(10)
        getattr(house, away).away = True
        await worker.aggregator.stopped()
        getattr(house, away).away = False
        assert "api-1" in house.quick.reports
        assert requests(await house.read()) == {f"requests|{REGISTER}|201": 1}


async def test_a_quick_store_that_fails_while_forgetting_changes_no_figure() -> None:
    """The last report stands in both stores then, and counts once."""
    house = House(quick=ForgetfulNot())
    worker = house.worker()
    await worker.observe(10)
    await worker.aggregator.stopped()
    assert requests(await house.read()) == {f"requests|{REGISTER}|201": 1}


class ForgetfulNot(MemoryQuickStore):
    """A quick store that is cut off whenever it shall forget."""

    async def forget(self, workers: Sequence[str]) -> None:
        """Fail."""
        del workers
        raise StoreUnavailable


async def test_a_window_that_did_not_change_is_merged_once_and_one_that_did_again() -> None:
    """Reading again gives the same figures, and a new latency in an old slice is seen."""
    house = House()
    one, two = house.worker("one"), house.worker("two")
    await one.observe(10)
    reader = Reader(Tally("reader"), house.quick, house.ledger, house.ledger, lambda: house.now)
    for count in (1, 1):
        house.now += FRESH_SECONDS
        assert (await reader.read()).latencies[REGISTER].count == count
    await two.observe(20)
    house.now += FRESH_SECONDS
    assert (await reader.read()).latencies[REGISTER].count == 2


def test_slices_before_the_window_are_left_out_of_it() -> None:
    """A store that has not dropped an old slice yet changes no percentile."""
    tally = Tally("w")
    tally.count([(REGISTER, 201, 5.0)], 0)
    report = tally.report({}, tally.slices(0))
    assert set(Window().over([report], 0)) == {REGISTER}
    assert Window().over([report], WINDOW_SECONDS + SLICE_SECONDS) == {}


def test_a_damaged_slice_is_left_out_and_spoils_no_other() -> None:
    """What another version wrote, or what is damaged, costs its own latencies only."""
    good, bad = Tally("good"), Tally("bad")
    good.count([(REGISTER, 201, 5.0)], 0)
    damaged = bad.report({}, {0: {REGISTER: b"rubbish", ACTIVATE: b""}})
    window = Window().over([damaged, good.report({}, good.slices(0))], 0)
    assert {route: sketch.count for route, sketch in window.items()} == {REGISTER: 1}


async def test_latencies_leave_the_window_and_totals_do_not() -> None:
    """After an hour a latency is forgotten, its count is not."""
    house = House()
    worker = house.worker()
    await worker.observe(10)
    house.now += WINDOW_SECONDS + SLICE_SECONDS
    await worker.observe(20, route=ACTIVATE)
    metrics = await house.read()
    assert set(metrics.latencies) == {ACTIVATE}
    assert metrics.totals[f"requests|{REGISTER}|201"] == 1
    assert set(worker.tally.slices(house.now)) == {slice_of(house.now)}


async def test_a_clock_that_goes_back_loses_no_latency() -> None:
    """A slice that is opened again keeps what it had."""
    house = House()
    worker = house.worker()
    await worker.observe(10)
    house.now += SLICE_SECONDS
    await worker.observe(20)
    house.now -= SLICE_SECONDS
    await worker.observe(30)
    house.now += SLICE_SECONDS
    assert (await house.read(worker)).latencies[REGISTER].count == 3


async def test_labels_are_capped() -> None:
    """More routes than the cap are counted under one label, and none is lost."""
    house = House()
    worker = house.worker()
    for number in range(ROUTE_LIMIT + 50):
        await worker.observe(1, route=f"GET /{number}", tick=False)
    totals = requests(await house.read(worker))
    assert len(totals) == ROUTE_LIMIT + 1
    assert totals[f"requests|{OTHER}|201"] == 50
    assert sum(totals.values()) == ROUTE_LIMIT + 50


async def test_machinery_counters_never_fall_and_levels_are_those_of_live_workers() -> None:
    """A counter that starts over is kept at its maximum; the levels of a silent worker are not shown."""
    house = House(machinery=Machinery({"mailbox_waiting|a": 3}, {"restarts|a": 2}))
    worker = house.worker("one")
    await worker.tick()
    house.machinery = Machinery({"mailbox_waiting|a": 1}, {"restarts|a": 0})
    await worker.tick()
    await house.worker("two").tick()
    house.quick.silent.add("two")
    metrics = await house.read()
    assert metrics.totals["restarts|a"] == 2
    assert metrics.levels["one"] == {"mailbox_waiting|a": 1}
    assert "two" not in metrics.levels


async def test_the_ticking_loop_writes_each_second_and_the_supervisor_the_rest(autojump_clock: object) -> None:
    """Under a supervisor the totals are in the store after a second, and complete after the drain."""
    del autojump_clock
    house = House()
    tally = Tally("api-1")
    supervisor = Supervisor(lambda *_: None)
    address = supervisor.employ(lambda: MetricsAggregator(tally, house.quick, house.ledger))
    async with supervisor.running(), anyio.create_task_group() as group:
        group.start_soon(ticking, address)
        address.offer(Observation(REGISTER, 201, 10))
        await anyio.sleep(1.5)
        assert requests(await house.read()) == {f"requests|{REGISTER}|201": 1}
        address.offer(Observation(REGISTER, 201, 10))
        group.cancel_scope.cancel()
    assert house.ledger.reports["api-1"].totals[f"requests|{REGISTER}|201"] == 2


async def test_many_ticks_that_waited_are_one_write() -> None:
    """Ticks that piled up behind a stalled store cost one write."""
    house = House()
    worker = house.worker()
    await worker.tick()
    writes = house.quick.writes
    await worker.aggregator.handle([Letter(Tick()) for _ in range(50)])
    assert house.quick.writes == writes + 1


async def test_an_overflow_of_observations_is_dropped_and_counted_by_the_mailbox() -> None:
    """Offers beyond the capacity never wait and are counted."""
    mailbox = Mailbox(MetricsAggregator.capacity)
    address = Address(mailbox)
    for _ in range(MetricsAggregator.capacity + 10):
        address.offer(Observation(REGISTER, 201, 1))
    assert address.statistics().dropped == 10


async def test_readers_at_the_same_moment_share_one_reading() -> None:
    """A second read within the fresh moment is the same object; a later one is not."""
    house = House()
    reader = Reader(Tally("reader"), house.quick, house.ledger, house.ledger, lambda: house.now)
    first = await reader.read()
    assert await reader.read() is first
    house.now += FRESH_SECONDS
    assert await reader.read() is not first
