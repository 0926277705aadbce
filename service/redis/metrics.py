"""The live store of the metrics in Redis: a HASH of totals and levels per worker, written over each second."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from actors.domain.totals import WorkerReport
from actors.metrics_ports import StoredReports
from actors.ports import StoreUnavailable
from service.redis.client import RedisUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeVar

    import redis

    from service.redis.client import Redis

    ResultT = TypeVar("ResultT")

PREFIX = "vestibule:metrics:"
WORKERS = PREFIX + "workers"  # SET of workers whose totals stand in a HASH
VERSION, LEVELS = "@version", "@levels"  # fields beside the totals, whose names never start so
LIVE_SECONDS = 3  # a tick and a stalled database; to be taken for gone too early harms nothing
KEEP_SECONDS = 86400  # a worker that dies in an outage of the database is taken over by the others after it


class RedisMetrics:
    """Keeps the newest report of each worker; memory grows with workers and routes, not with traffic."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def write(self, report: WorkerReport) -> None:
        """Write the totals over the worker's HASH."""
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


def _totals(worker: str) -> str:
    return f"{PREFIX}totals:{worker}"


def _alive(worker: str) -> str:
    return f"{PREFIX}alive:{worker}"


def _write(client: redis.Redis, report: WorkerReport) -> None:
    worker = report.worker
    fields: dict[Any, Any] = {**report.totals, VERSION: report.version, LEVELS: json.dumps(report.levels)}
    with client.pipeline(transaction=True) as pipe:
        pipe.hset(_totals(worker), mapping=fields)
        pipe.expire(_totals(worker), KEEP_SECONDS)
        pipe.sadd(WORKERS, worker)
        if report.leaving:
            pipe.delete(_alive(worker))
        else:
            pipe.set(_alive(worker), 1, ex=LIVE_SECONDS)
        pipe.execute()


def _read(client: redis.Redis) -> StoredReports:
    with client.pipeline(transaction=False) as pipe:
        pipe.smembers(WORKERS)
        workers = [item.decode() for item in pipe.execute()[0]]
        for worker in workers:
            pipe.hgetall(_totals(worker))
            pipe.exists(_alive(worker))
        answers = pipe.execute()
    reports = [_report(worker, fields) for worker, fields in zip(workers, answers[::2], strict=True)]
    return StoredReports(reports, frozenset(w for w, alive in zip(workers, answers[1::2], strict=True) if alive))


def _report(worker: str, fields: Mapping[bytes, bytes]) -> WorkerReport:
    texts = {name.decode(): value for name, value in fields.items()}
    version = int(texts.pop(VERSION, b"0"))
    levels: dict[str, float] = json.loads(texts.pop(LEVELS, b"{}"))
    return WorkerReport(worker, version, {name: _number(value) for name, value in texts.items()}, levels)


def _number(text: bytes) -> float:
    return int(text) if text.isdigit() else float(text)


def _forget(client: redis.Redis, workers: Sequence[str]) -> None:
    with client.pipeline(transaction=True) as pipe:
        for worker in workers:
            pipe.delete(_totals(worker))
        pipe.srem(WORKERS, *workers)
        pipe.execute()
