"""The live store of the metrics in Redis: a HASH of totals per worker, a ZSET of slices that point to histograms."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from actors.domain.totals import SLICE_SECONDS, WINDOW_SECONDS, WorkerReport
from actors.ports import StoredReports, StoreUnavailable
from service.redis.client import RedisUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeVar

    import redis

    from service.redis.client import Redis

    ResultT = TypeVar("ResultT")

PREFIX = "vestibule:metrics:"
WORKERS = PREFIX + "workers"  # SET of workers whose totals stand in a HASH
SLICES = PREFIX + "slices"  # ZSET of `start:worker`, by start
VERSION, LEVELS = "@version", "@levels"  # fields beside the totals, whose names never start so
LIVE_SECONDS = 3  # a tick and a stalled database; to be taken for gone too early harms nothing
KEEP_SECONDS = WINDOW_SECONDS + 2 * SLICE_SECONDS  # past it a silent worker's totals are the lasting store's alone


class RedisMetrics:
    """Keeps the reports until the window has passed; memory grows with workers, routes and slices, not with traffic."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def write(self, report: WorkerReport) -> bool:
        """Write the totals over the worker's HASH, in one transaction with its slices."""
        return await self._call(partial(_write, report=report))

    async def read(self, since: int) -> StoredReports:
        """Return what all workers have written, in two round trips."""
        return await self._call(partial(_read, since=since))

    async def gone(self) -> Sequence[WorkerReport]:
        """Return the reports of workers that have not written for LIVE_SECONDS."""
        return await self._call(_gone)

    async def forget(self, workers: Sequence[str]) -> None:
        """Drop the workers' totals."""
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


def _slice(member: str) -> str:
    return f"{PREFIX}slice:{member}"


def _write(client: redis.Redis, report: WorkerReport) -> bool:
    worker = report.worker
    fields: dict[Any, Any] = {**report.totals, VERSION: report.version, LEVELS: json.dumps(report.levels)}
    with client.pipeline(transaction=True) as pipe:
        pipe.hexists(_totals(worker), VERSION)
        pipe.hset(_totals(worker), mapping=fields)
        pipe.expire(_totals(worker), KEEP_SECONDS)
        pipe.sadd(WORKERS, worker)
        if report.leaving:
            pipe.delete(_alive(worker))
        else:
            pipe.set(_alive(worker), 1, ex=LIVE_SECONDS)
        for start, routes in report.slices.items():
            member = f"{start}:{worker}"
            pipe.hset(_slice(member), mapping=dict(routes))
            pipe.expire(_slice(member), KEEP_SECONDS)
            pipe.zadd(SLICES, {member: start})
        if report.slices:
            pipe.zremrangebyscore(SLICES, "-inf", max(report.slices) - KEEP_SECONDS)
        known: bool = pipe.execute()[0]
    return bool(known)


def _read(client: redis.Redis, since: int) -> StoredReports:
    with client.pipeline(transaction=False) as pipe:
        pipe.smembers(WORKERS)
        pipe.zrangebyscore(SLICES, since, "+inf")
        workers, members = ([item.decode() for item in answer] for answer in pipe.execute())
        for worker in workers:
            pipe.hgetall(_totals(worker))
            pipe.exists(_alive(worker))
        for member in members:
            pipe.hgetall(_slice(member))
        answers = pipe.execute()
    slices: dict[str, dict[int, Mapping[str, bytes]]] = {}
    for member, histograms in zip(members, answers[2 * len(workers) :], strict=True):
        start, _, worker = member.partition(":")
        slices.setdefault(worker, {})[int(start)] = {route.decode(): packed for route, packed in histograms.items()}
    live = {worker for worker, alive in zip(workers, answers[1 : 2 * len(workers) : 2], strict=True) if alive}
    reports = [
        _report(worker, fields, slices.pop(worker, {}))
        for worker, fields in zip(workers, answers[0 : 2 * len(workers) : 2], strict=True)
    ]
    reports += [WorkerReport(worker, 0, {}, slices=left) for worker, left in slices.items()]
    return StoredReports(reports, frozenset(live))


def _report(worker: str, fields: Mapping[bytes, bytes], slices: Mapping[int, Mapping[str, bytes]]) -> WorkerReport:
    texts = {name.decode(): value for name, value in fields.items()}
    version = int(texts.pop(VERSION, b"0"))
    levels: dict[str, float] = json.loads(texts.pop(LEVELS, b"{}"))
    return WorkerReport(worker, version, {name: _number(value) for name, value in texts.items()}, levels, slices)


def _number(text: bytes) -> float:
    return int(text) if text.isdigit() else float(text)


def _gone(client: redis.Redis) -> list[WorkerReport]:
    with client.pipeline(transaction=False) as pipe:
        pipe.smembers(WORKERS)
        workers = [item.decode() for item in pipe.execute()[0]]
        for worker in workers:
            pipe.exists(_alive(worker))
        silent = [worker for worker, alive in zip(workers, pipe.execute(), strict=True) if not alive]
    if not silent:
        return []
    return [report for report in _read(client, 0).reports if report.worker in silent]


def _forget(client: redis.Redis, workers: Sequence[str]) -> None:
    with client.pipeline(transaction=True) as pipe:
        for worker in workers:
            pipe.delete(_totals(worker))
        pipe.srem(WORKERS, *workers)
        pipe.execute()
