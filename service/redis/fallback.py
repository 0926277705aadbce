"""The rate limits over both stores: Redis, and PostgreSQL for as long as Redis is away.

Each worker remembers the uses that one store counted and the other may not know, and tells them before the other
decides for it, a Redis that lost its data included. So a window goes on over both changes as far as the workers live;
what the memory of a killed worker held is what "starts over once per outage". When both are away nothing is decided:
StoreUnavailable.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import anyio

from actors.domain.rate_limit import Use
from actors.ports import StoreUnavailable
from service.redis.client import RedisUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from actors.domain.rate_limit import Admission, Bucket
    from actors.ports import WindowRequest
    from service.postgres.rate_limits import PostgresRateLimits
    from service.redis.rate_limits import RedisRateLimits

REMEMBERED = 2048  # tickets: half a megabyte a worker, told within a tenth of a second
CLEAN_SECONDS = 60.0  # uses that count no more lie in Postgres for a minute at most


class Remembered:
    """Tickets and their buckets that another store is to be told of; when full the oldest is forgotten."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[tuple[Bucket, ...], float]] = {}

    def note(self, ticket: str, buckets: tuple[Bucket, ...]) -> None:
        """Remember a ticket from now on."""
        now = anyio.current_time()
        self._entries[ticket] = (buckets, now)
        while self._entries:
            oldest, (counted, moment) = next(iter(self._entries.items()))
            if len(self._entries) <= REMEMBERED and moment + _longest(counted) >= now:
                break
            del self._entries[oldest]

    def forget(self, tickets: Iterable[str]) -> None:
        """Forget tickets, known or not."""
        for ticket in tickets:
            self._entries.pop(ticket, None)

    def pass_on(self, tickets: Iterable[str], other: Remembered) -> None:
        """Let another memory remember these instead, from the same moments on."""
        for ticket in tickets:
            entry = self._entries.pop(ticket, None)
            if entry is not None:
                other._entries[ticket] = entry

    def given(self) -> list[tuple[tuple[Bucket, ...], str]]:
        """Return what is remembered."""
        return [(buckets, ticket) for ticket, (buckets, _) in self._entries.items()]

    def uses(self) -> list[Use]:
        """Return what is remembered and still counts, with the time that it has left."""
        now = anyio.current_time()
        everything = (
            Use(bucket, ticket, moment + bucket.rule.seconds - now)
            for ticket, (buckets, moment) in self._entries.items()
            for bucket in buckets
        )
        return [use for use in everything if use.left_seconds >= 0]


class RateLimitsFallback:
    """The RateLimits port over both stores."""

    def __init__(self, redis: RedisRateLimits, postgres: PostgresRateLimits) -> None:
        self._redis = redis
        self._postgres = postgres
        self._untold_redis = Remembered()  # known to Postgres: what Redis counted may be gone with it
        self._untold_postgres = Remembered()  # admitted by Redis
        self._disowned = Remembered()  # perhaps counted by Redis, and neither admitted nor kept
        self._postgres_until = 0.0  # until then Postgres may hold uses that count
        redis.before_return(lambda: (self._untold_redis.uses(), self._disowned.given()))

    async def decide(self, asked: Sequence[WindowRequest]) -> list[Admission]:
        """Decide in Redis, or in Postgres when Redis is away; raises StoreUnavailable when both are."""
        try:
            await self._settle_with_redis()
            admissions = await self._redis.decide(asked)
        except RedisUnavailable as outage:
            return await self._decide_in_postgres(asked, redis_asked=outage.asked)
        for request, admission in zip(asked, admissions, strict=True):
            if request.count and admission.admitted:
                self._untold_postgres.note(request.ticket, request.buckets)
        return admissions

    async def give_back(self, given: Sequence[tuple[tuple[Bucket, ...], str]]) -> None:
        """Remove tickets from wherever they may be counted; from Redis after its outage, if it is away."""
        self._untold_redis.forget(ticket for _, ticket in given)
        self._untold_postgres.forget(ticket for _, ticket in given)
        try:
            await self._redis.give_back(given)
        except RedisUnavailable:
            for buckets, ticket in given:
                self._disowned.note(ticket, buckets)
        if anyio.current_time() <= self._postgres_until:
            await self._postgres.give_back(given)

    async def cleaning(self) -> NoReturn:
        """Run until cancelled, in a task of the owner: remove what counts no more from Postgres now and then."""
        while True:
            with suppress(StoreUnavailable):
                await self._postgres.clean()
            await anyio.sleep(CLEAN_SECONDS)

    async def _settle_with_redis(self) -> None:
        uses, given = self._untold_redis.uses(), self._disowned.given()
        if uses:
            await self._redis.load(uses)
            self._untold_redis.forget(use.ticket for use in uses)
        if given:
            await self._redis.give_back(given)
            self._disowned.forget(ticket for _, ticket in given)

    async def _decide_in_postgres(self, asked: Sequence[WindowRequest], *, redis_asked: bool) -> list[Admission]:
        counted = [request for request in asked if request.count]
        if redis_asked:
            for request in counted:
                self._disowned.note(request.ticket, request.buckets)
        if uses := self._untold_postgres.uses():
            self._keep_postgres_for(use.bucket for use in uses)
            await self._postgres.load(uses)
            self._untold_postgres.pass_on((use.ticket for use in uses), self._untold_redis)
        self._keep_postgres_for(bucket for request in counted for bucket in request.buckets)
        admissions = await self._postgres.decide(asked)
        for request, admission in zip(asked, admissions, strict=True):
            if request.count and admission.admitted:
                self._disowned.forget([request.ticket])
                self._untold_redis.note(request.ticket, request.buckets)
        return admissions

    def _keep_postgres_for(self, buckets: Iterable[Bucket]) -> None:
        until = anyio.current_time() + _longest(buckets)
        self._postgres_until = max(self._postgres_until, until)


def _longest(buckets: Iterable[Bucket]) -> float:
    return max((bucket.rule.seconds for bucket in buckets), default=0)
