"""Sliding windows in Redis: one atomic script per decision, all waiting decisions in one round trip.

Each bucket is a sorted set of the tickets that it admitted, scored with Redis' own clock in microseconds. The keys'
hash tags (`{subject}`) keep the windows of one subject together and spread subjects. A decision over several
subjects, as over the two networks of an IPv6 client, is still one script, so it needs one node: Redis alone or with
replicas behind one address. A Redis Cluster refuses such scripts (CROSSSLOT); that is an outage to the client here, and
the windows are kept in Postgres: exact too, only slower. Splitting a decision by node would need a compensation for
what one node counted and another refused, and in between it refuses clients that have done nothing.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from actors.domain.rate_limit import Admission, Reading
from service.redis.client import Script

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis

    from actors.domain.rate_limit import Bucket, Use
    from actors.ports import WindowRequest
    from service.redis.client import Redis

    Given = Sequence[tuple[tuple[Bucket, ...], str]]

PREFIX = "vestibule:"
MICROSECONDS = 1_000_000
LOAD_BATCH = 500  # uses in one script: a millisecond or so, in which Redis serves nobody else

# Race: many workers at a window with one place left. A script runs alone, and decides and counts in one.
# A ticket that is there already is admitted again, so that a repeat counts once. What has just expired is removed
# by an exclusive bound (at exactly its end a use still counts). Numbers become text with %.0f, as .. keeps 14 digits.
DECIDE = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local counts, ticket = ARGV[1] == '1', ARGV[2]
local admitted = 1
local used = {}
for i, key in ipairs(KEYS) do
    local limit, window = tonumber(ARGV[1 + 2 * i]), tonumber(ARGV[2 + 2 * i])
    redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('(%.0f', now - window))
    used[i] = redis.call('ZCARD', key)
    if used[i] >= limit and not redis.call('ZSCORE', key, ticket) then
        admitted = 0
    end
end
local answer = {admitted}
for i, key in ipairs(KEYS) do
    local limit, window = tonumber(ARGV[1 + 2 * i]), tonumber(ARGV[2 + 2 * i])
    if admitted == 1 and counts then
        used[i] = used[i] + redis.call('ZADD', key, 'NX', string.format('%.0f', now), ticket)
        redis.call('PEXPIRE', key, string.format('%.0f', window / 1000 + 1))
    end
    local rank = math.max(used[i] - limit, 0)
    local next_free = redis.call('ZRANGE', key, rank, rank, 'WITHSCORES')
    table.insert(answer, math.max(limit - used[i], 0))
    table.insert(answer, next_free[2] and next_free[2] + window - now + 1 or 0)
end
return answer
""")

# Uses that another store admitted, each with the microseconds that it has left and its window's length.
LOAD = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for i, key in ipairs(KEYS) do
    local ticket, left, window = ARGV[3 * i - 2], tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
    redis.call('ZADD', key, 'NX', string.format('%.0f', now + left - window), ticket)
    redis.call('PEXPIRE', key, string.format('%.0f', window / 1000 + 1))
end
return 1
""")


class RedisRateLimits:
    """The RateLimits port on Redis, except that it raises RedisUnavailable when Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def decide(self, asked: Sequence[WindowRequest]) -> list[Admission]:
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

    def before_return(self, owed: Callable[[], tuple[Sequence[Use], Given]]) -> None:
        """After an outage, and before any decision, have those uses counted and those tickets given back."""
        self._redis.before_return(lambda: partial(_settle, owed=owed()))


def _settle(client: redis.Redis, owed: tuple[Sequence[Use], Given]) -> None:
    uses, given = owed
    _load(client, uses)
    _withdraw(client, given)


def _load(client: redis.Redis, uses: Sequence[Use]) -> None:
    for start in range(0, len(uses), LOAD_BATCH):
        batch = uses[start : start + LOAD_BATCH]
        arguments: list[str | int] = []
        for use in batch:
            window = use.bucket.rule.seconds * MICROSECONDS
            arguments += (use.ticket, int(use.left_seconds * MICROSECONDS), window)
        LOAD.run(client, [([PREFIX + use.bucket.key for use in batch], arguments)])


def _withdraw(client: redis.Redis, given: Given) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for buckets, ticket in given:
            for bucket in buckets:
                pipeline.zrem(PREFIX + bucket.key, ticket)
        pipeline.execute()


def _call(request: WindowRequest) -> tuple[list[str], list[str | int]]:
    arguments: list[str | int] = [int(request.count), request.ticket]
    for bucket in request.buckets:
        arguments += (bucket.rule.limit, bucket.rule.seconds * MICROSECONDS)
    return [PREFIX + bucket.key for bucket in request.buckets], arguments


def _admission(request: WindowRequest, answer: list[Any]) -> Admission:
    admitted, *figures = answer
    return Admission.read(
        request.ticket,
        admitted=admitted == 1,
        readings=[
            Reading(bucket.rule, remaining, reset / MICROSECONDS)
            for bucket, remaining, reset in zip(request.buckets, figures[::2], figures[1::2], strict=True)
        ],
    )
