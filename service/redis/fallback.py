"""The rate limits over both stores: Redis, and PostgreSQL for as long as Redis is away.

The windows start over when an outage begins, and only then: before a worker decides in Redis again it has Redis count
everything that PostgreSQL still counts, from whichever worker, also in a Redis that lost its data. When both are away
nothing is decided: StoreUnavailable.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import anyio

from actors.ports import StoreUnavailable
from service.redis.client import RedisUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.domain.rate_limit import Admission, Bucket
    from actors.ports import Admit
    from service.postgres.rate_limits import PostgresRateLimits
    from service.redis.rate_limits import RedisRateLimits

REMEMBERED = 2048  # tickets to give back to Redis: those beyond it stay counted until their windows have passed
CATCH_UP_SECONDS = 0.1  # how soon after its return Redis counts what an idle worker has admitted without it
CLEAN_SECONDS = 60.0  # uses that count no more lie in Postgres for a minute at most


class RateLimitsFallback:
    """The RateLimits port over both stores."""

    def __init__(self, redis: RedisRateLimits, postgres: PostgresRateLimits) -> None:
        self._redis = redis
        self._postgres = postgres
        self._behind = anyio.Event()  # set while Redis may lack what Postgres counts
        self._behind.set()  # a worker that has just started knows nothing of the outage before it
        self._in_postgres = 0  # batches that were decided there
        self._owed: dict[str, tuple[Bucket, ...]] = {}  # tickets to give back to Redis, if it counted them

    async def decide(self, asked: Sequence[Admit]) -> list[Admission]:
        """Decide in Redis, or in Postgres when Redis is away; raises StoreUnavailable when both are."""
        try:
            await self._catch_up()
            return await self._redis.decide(asked)
        except RedisUnavailable as outage:
            return await self._decide_in_postgres(asked, redis_asked=outage.asked)

    async def give_back(self, given: Sequence[tuple[tuple[Bucket, ...], str]]) -> None:
        """Remove tickets from wherever they may be counted; from Redis after its outage, if it is away.

        One that another worker is telling Redis of at the same time stays counted until its window has passed.
        """
        try:
            await self._redis.give_back(given)
        except RedisUnavailable:
            self._owe({ticket: buckets for buckets, ticket in given})
        if self._in_postgres:
            await self._postgres.give_back(given)

    async def cleaning(self) -> None:
        """Run until cancelled, in a task of the owner: keep Postgres small, and tell Redis what it has missed."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._catching_up)
            while True:
                with suppress(StoreUnavailable):
                    await self._postgres.clean()
                await anyio.sleep(CLEAN_SECONDS)

    async def _catching_up(self) -> NoReturn:
        """Catch up for a worker that decides nothing more: the others must know what it has admitted."""
        while True:
            await self._behind.wait()
            with suppress(StoreUnavailable, RedisUnavailable):
                await self._catch_up()
            await anyio.sleep(CATCH_UP_SECONDS)

    async def _catch_up(self) -> None:
        """Have Redis count what was counted without it, and give back what it may have counted in vain."""
        if not self._behind.is_set():
            return
        before, owed = self._in_postgres, dict(self._owed)
        await self._redis.load([])  # asks Redis whether it is there, before Postgres reads in vain
        async for page in self._postgres.uses():
            await self._redis.load(page)
        await self._redis.give_back([(buckets, ticket) for ticket, buckets in owed.items()])
        for ticket in owed:
            self._owed.pop(ticket, None)
        if before == self._in_postgres:
            self._behind = anyio.Event()

    async def _decide_in_postgres(self, asked: Sequence[Admit], *, redis_asked: bool) -> list[Admission]:
        if redis_asked:
            self._owe({request.ticket: request.buckets for request in asked if request.count})
        try:
            admissions = await self._postgres.decide(asked)
        finally:  # not before: catching up meanwhile would miss these
            self._in_postgres += 1
            self._behind.set()
        for admission in admissions:
            if admission.admitted:
                self._owed.pop(admission.ticket, None)
        return admissions

    def _owe(self, tickets: dict[str, tuple[Bucket, ...]]) -> None:
        self._owed |= tickets
        while len(self._owed) > REMEMBERED:
            del self._owed[next(iter(self._owed))]
