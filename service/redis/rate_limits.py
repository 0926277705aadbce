"""Sliding windows in Redis: one atomic script per decision, all waiting decisions in one round trip.

Each bucket is a sorted set of the tickets that it admitted, scored with the microsecond of Redis' own clock up to which
they count. A decision over several buckets is one script, so it needs one node: Redis alone, or with replicas behind
one address. A Redis Cluster refuses such scripts (CROSSSLOT). That is an outage to the client here, and the windows are
kept in Postgres: as exact, only slower.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from actors.domain.rate_limit import Admission, Reading
from service.redis.client import Script

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

    from actors.domain.rate_limit import Bucket, Use
    from actors.ports import Admit
    from service.redis.client import Redis

    Given = Sequence[tuple[tuple[Bucket, ...], str]]

PREFIX = "vestibule:limit:"
MICROSECONDS = 1_000_000

# What both scripts begin with. Numbers become text with %.0f, as .. keeps 14 digits.
CLOCK = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function count(key, ticket, seconds)
    local added = redis.call('ZADD', key, 'NX', string.format('%.0f', now + seconds), ticket)
    local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2]
    redis.call('PEXPIREAT', key, string.format('%.0f', last / 1000 + 1))
    return added
end
"""

# Race: many workers at a window with one place left. A script runs alone, and decides and counts in one.
# A ticket that is there already is admitted again, so that a repeat counts once. What has expired is removed by an
# exclusive bound: at exactly its end a use still counts.
DECIDE = Script(
    CLOCK
    + """
local counts, ticket = ARGV[1] == '1', ARGV[2]
local admitted, used = 1, {}
for i, key in ipairs(KEYS) do
    redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('(%.0f', now))
    used[i] = redis.call('ZCARD', key)
    if used[i] >= tonumber(ARGV[1 + 2 * i]) and not redis.call('ZSCORE', key, ticket) then
        admitted = 0
    end
end
local answer = {admitted}
for i, key in ipairs(KEYS) do
    local limit, window = tonumber(ARGV[1 + 2 * i]), tonumber(ARGV[2 + 2 * i])
    if admitted == 1 and counts then
        used[i] = used[i] + count(key, ticket, window)
    end
    local rank = math.max(used[i] - limit, 0)
    local first_end = redis.call('ZRANGE', key, rank, rank, 'WITHSCORES')[2]
    table.insert(answer, math.max(limit - used[i], 0))
    table.insert(answer, first_end and first_end - now + 1 or 0)
end
return answer
"""
)

# Uses that another store admitted, each with the microseconds that it has left.
LOAD = Script(
    CLOCK
    + """
for i, key in ipairs(KEYS) do
    count(key, ARGV[2 * i - 1], tonumber(ARGV[2 * i]))
end
return 1
"""
)


class RedisRateLimits:
    """The RateLimits port on Redis, except that it raises RedisUnavailable when Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def decide(self, asked: Sequence[Admit]) -> list[Admission]:
        """Decide each request atomically, in order, in one round trip."""
        calls = [_call(request) for request in asked]
        answers = await self._redis.call(lambda client: DECIDE.run(client, calls))
        return [_admission(request, answer) for request, answer in zip(asked, answers, strict=True)]

    async def give_back(self, given: Given) -> None:
        """Remove what each ticket counted in its buckets."""
        await self._redis.call(partial(_withdraw, given=given))

    async def load(self, uses: Sequence[Use]) -> None:
        """Count what another store admitted, whatever the limits; a use that is known already counts once."""
        await self._redis.call(partial(_load, uses=uses))


def _load(client: redis.Redis, uses: Sequence[Use]) -> None:
    arguments: list[str | int] = []
    for use in uses:
        arguments += (use.ticket, int(use.left_seconds * MICROSECONDS))
    LOAD.run(client, [([PREFIX + use.key for use in uses], arguments)])


def _withdraw(client: redis.Redis, given: Given) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for buckets, ticket in given:
            for bucket in buckets:
                pipeline.zrem(PREFIX + bucket.key, ticket)
        pipeline.execute()


def _call(request: Admit) -> tuple[list[str], list[str | int]]:
    arguments: list[str | int] = [int(request.count), request.ticket]
    for bucket in request.buckets:
        arguments += (bucket.rule.limit, bucket.rule.seconds * MICROSECONDS)
    return [PREFIX + bucket.key for bucket in request.buckets], arguments


def _admission(request: Admit, answer: list[Any]) -> Admission:
    admitted, *figures = answer
    return Admission.read(
        request.ticket,
        admitted=admitted == 1,
        readings=[
            Reading(bucket.rule, remaining, reset / MICROSECONDS)
            for bucket, remaining, reset in zip(request.buckets, figures[::2], figures[1::2], strict=True)
        ],
    )
