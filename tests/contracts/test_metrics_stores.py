from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from actors.domain.sketches import Sketch
from actors.domain.tally import SLICE_SECONDS, WorkerReport, first_slice, slice_of, summed, together
from actors.ports import StoreUnavailable
from service.adapters.postgres import Postgres
from service.adapters.postgres_metrics import PostgresMetrics
from service.adapters.redis_client import Redis
from service.adapters.redis_metrics import RedisMetrics
from tests.fakes.metrics import MemoryLedger, MemoryQuickStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from actors.metrics_ports import Holdings, Ledger, MetricsStore, QuickStore

NOW = 1_800_000_000.0
REQUESTS = "requests|GET /|200"

quick_and_ledger = pytest.mark.parametrize("kind", ["fake quick", "fake ledger", "redis", "postgres"])
quick_only = pytest.mark.parametrize("kind", ["fake quick", "redis"])
ledger_only = pytest.mark.parametrize("kind", ["fake ledger", "postgres"])


@asynccontextmanager
async def opened_quick(kind: str, request: pytest.FixtureRequest) -> AsyncIterator[QuickStore]:
    """Open a quick store; a server is started only for those that need one."""
    if kind == "fake quick":
        yield MemoryQuickStore()
    else:
        async with Redis.open(request.getfixturevalue("redis_url")) as redis:
            yield RedisMetrics(redis)


@asynccontextmanager
async def opened_ledger(kind: str, request: pytest.FixtureRequest) -> AsyncIterator[Ledger]:
    """Open a ledger."""
    if kind == "fake ledger":
        yield MemoryLedger()
    else:
        async with Postgres.open(request.getfixturevalue("database_url")) as postgres:
            yield PostgresMetrics(postgres)


@asynccontextmanager
async def opened(kind: str, request: pytest.FixtureRequest) -> AsyncIterator[QuickStore | Ledger]:
    """Open a store of either sort."""
    if kind in {"fake quick", "redis"}:
        async with opened_quick(kind, request) as quick:
            yield quick
    else:
        async with opened_ledger(kind, request) as ledger:
            yield ledger


def packed(*values: float) -> bytes:
    """Return a packed sketch of the values."""
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch.pack()


def of(holdings: Holdings, worker: str) -> WorkerReport:
    """Return the worker's report."""
    return together(holdings.reports)[worker]


def totals(holdings: Holdings) -> Mapping[str, float]:
    """Return the sums over all workers."""
    return summed(together(holdings.reports).values(), holdings.folded)


async def write(store: MetricsStore, worker: str, version: int, requests: int, *, leaving: bool = False) -> bool:
    """Write a report with one total."""
    return await store.write(WorkerReport(worker, version, {REQUESTS: requests}, leaving=leaving))


@quick_and_ledger
async def test_what_is_written_is_read(kind: str, request: pytest.FixtureRequest) -> None:
    """Totals, whole and with fractions, levels and slices come back as they went in, and the worker is alive."""
    async with opened(kind, request) as store:
        slices = {slice_of(NOW): {"GET /": packed(1, 2), "other": packed(3)}}
        await store.write(WorkerReport("w", 1, {REQUESTS: 3, "sum|GET /": 1.25}, {"mailbox_waiting|a": 2}, slices))
        holdings = await store.read(0)
        report = of(holdings, "w")
        assert report.totals == {REQUESTS: 3, "sum|GET /": 1.25}
        assert report.levels == {"mailbox_waiting|a": 2}
        assert report.slices == slices
        assert holdings.live == {"w"}


@quick_and_ledger
async def test_a_later_report_replaces_totals_and_adds_slices(kind: str, request: pytest.FixtureRequest) -> None:
    """Totals are those of the newest report; slices that it does not name stay."""
    async with opened(kind, request) as store:
        early, late = slice_of(NOW), slice_of(NOW) + SLICE_SECONDS
        await store.write(WorkerReport("w", 1, {REQUESTS: 3}, {}, {early: {"GET /": packed(1)}}))
        await store.write(WorkerReport("w", 2, {REQUESTS: 5}, {}, {late: {"GET /": packed(2)}}))
        report = of(await store.read(0), "w")
        assert report.totals == {REQUESTS: 5}
        assert set(report.slices) == {early, late}
        assert set(of(await store.read(late), "w").slices) == {late}


@quick_only
async def test_a_quick_store_tells_who_is_new_to_it(kind: str, request: pytest.FixtureRequest) -> None:
    """The first write of a worker answers False, later ones True, and after being forgotten False again."""
    async with opened_quick(kind, request) as store:
        assert not await write(store, "w", 1, 1)
        assert await write(store, "w", 2, 2)
        await store.forget(["w"])
        assert not await write(store, "w", 3, 3)


@quick_only
async def test_only_departed_workers_are_departed(kind: str, request: pytest.FixtureRequest) -> None:
    """A worker that has left is among the departed with its slices; one that lives is not."""
    async with opened_quick(kind, request) as store:
        slices = {slice_of(NOW): {"GET /": packed(1)}}
        await store.write(WorkerReport("gone", 1, {REQUESTS: 3}, {}, slices, leaving=True))
        await write(store, "alive", 1, 4)
        (departed,) = await store.departed()
        assert (departed.worker, departed.version) == ("gone", 1)
        assert (departed.totals, departed.slices) == ({REQUESTS: 3}, slices)
        assert (await store.read(0)).live == {"alive"}


@quick_only
async def test_forgetting_drops_totals_and_leaves_slices(kind: str, request: pytest.FixtureRequest) -> None:
    """The latencies of a forgotten worker stay in the window; its totals are gone."""
    async with opened_quick(kind, request) as store:
        slices = {slice_of(NOW): {"GET /": packed(1)}}
        await store.write(WorkerReport("w", 1, {REQUESTS: 3}, {}, slices))
        await store.forget(["w"])
        holdings = await store.read(0)
        assert totals(holdings) == {}
        assert of(holdings, "w").slices == slices
        assert not await store.departed()


@ledger_only
async def test_an_older_version_changes_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    """A write that was late on its way does not take the ledger back."""
    async with opened_ledger(kind, request) as store:
        await write(store, "w", 5, 10)
        await write(store, "w", 4, 9)
        assert totals(await store.read(0)) == {REQUESTS: 10}


@ledger_only
async def test_leaving_workers_stay_counted_and_are_not_alive(kind: str, request: pytest.FixtureRequest) -> None:
    """What a worker counted outlives it."""
    async with opened_ledger(kind, request) as store:
        await write(store, "gone", 1, 3, leaving=True)
        await write(store, "alive", 1, 4)
        holdings = await store.read(0)
        assert totals(holdings) == {REQUESTS: 7}
        assert holdings.live == {"alive"}


@ledger_only
async def test_compaction_changes_no_sum_and_drops_old_slices(kind: str, request: pytest.FixtureRequest) -> None:
    """However often it runs, the totals stay, and slices before the window are gone."""
    async with opened_ledger(kind, request) as store:
        slices = {start: {"GET /": packed(1)} for start in (slice_of(NOW), first_slice(NOW) - SLICE_SECONDS)}
        await store.write(WorkerReport("w", 1, {REQUESTS: 3}, {}, slices))
        await write(store, "gone", 1, 4, leaving=True)
        for _ in range(3):
            await store.compact(first_slice(NOW))
        holdings = await store.read(0)
        assert totals(holdings) == {REQUESTS: 7}
        assert set(of(holdings, "w").slices) == {slice_of(NOW)}


async def test_a_redis_that_is_away_is_an_unavailable_store() -> None:
    """No server at the URL is told as StoreUnavailable."""
    async with Redis.open("redis://127.0.0.1:23999") as redis:
        with pytest.raises(StoreUnavailable):
            await RedisMetrics(redis).read(0)
