"""The live store of the metrics in Redis: totals and levels of each worker, written over each second."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

from actors.domain.totals import WorkerReport
from actors.metrics_ports import StoredReports
from actors.ports import StoreUnavailable
from service.redis.client import RedisUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    import redis

    from service.redis.client import Redis

    ResultT = TypeVar("ResultT")

PREFIX = "vestibule:metrics:"
REPORTS = PREFIX + "reports"  # HASH of each worker's newest report
LIVE_SECONDS = 3  # a tick and a stalled database; to be taken for gone too early harms nothing
KEEP_SECONDS = 86400  # a worker that dies in an outage of the database is taken over by the others after it


class RedisMetrics:
    """Keeps the newest report of each worker; memory grows with workers and routes, not with traffic."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def write(self, report: WorkerReport) -> None:
        """Replace the worker's report."""
        await self._call(partial(_write, report=report))

    async def read(self) -> StoredReports:
        """Return what all workers have written, in two round trips."""
        return await self._call(_read)

    async def forget(self, workers: Sequence[str]) -> None:
        """Drop the workers."""
        await self._call(partial(_forget, workers=workers))

    async def _call(self, work: Callable[[redis.Redis], ResultT]) -> ResultT:
        try:
            return await self._redis.call(work)
        except RedisUnavailable:
            raise StoreUnavailable from None


def _alive(worker: str) -> str:
    return f"{PREFIX}alive:{worker}"


def _write(client: redis.Redis, report: WorkerReport) -> None:
    with client.pipeline(transaction=True) as pipe:
        pipe.hset(REPORTS, report.worker, json.dumps([report.version, report.totals, report.levels]))
        pipe.expire(REPORTS, KEEP_SECONDS)
        if report.leaving:
            pipe.delete(_alive(report.worker))
        else:
            pipe.set(_alive(report.worker), 1, ex=LIVE_SECONDS)
        pipe.execute()


def _read(client: redis.Redis) -> StoredReports:
    with client.pipeline(transaction=False) as pipe:
        pipe.hgetall(REPORTS)
        [held] = pipe.execute()
        reports = [WorkerReport(worker.decode(), *json.loads(report)) for worker, report in held.items()]
        for report in reports:
            pipe.exists(_alive(report.worker))
        alive = pipe.execute()
    live = frozenset(report.worker for report, lives in zip(reports, alive, strict=True) if lives)
    return StoredReports(reports, live)


def _forget(client: redis.Redis, workers: Sequence[str]) -> None:
    client.hdel(REPORTS, *workers)
