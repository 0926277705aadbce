"""One contract for sliding windows: the fake, Redis, Postgres, and the two together."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import pytest

from actors.domain.rate_limit import TICK_SECONDS, Bucket, Rule
from actors.ports import Admit
from service.postgres.pool import Postgres
from service.postgres.rate_limits import PostgresRateLimits
from service.redis.client import Redis
from service.redis.fallback import RateLimitsFallback
from service.redis.rate_limits import RedisRateLimits
from tests.fakes.rate_limits import FakeRateLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from actors.domain.rate_limit import Admission
    from actors.ports import RateLimits

SHORT = Rule("short", 3, 1)  # a second is the shortest window there is: the suite waits for it in earnest
HOUR = Rule("hour", 5, 3600)


@dataclass
class Store:
    """One implementer of the port, and how time passes for it."""

    windows: RateLimits
    wait: Callable[[float], Awaitable[None]]

    async def decide(self, *buckets: Bucket, count: bool = True, ticket: str | None = None) -> Admission:
        """Decide one request."""
        return (await self.windows.decide([Admit(buckets, count, ticket or uuid4().hex)]))[0]


class Clock:
    """The fake's time, which waiting moves."""

    now = 1000.0

    async def wait(self, seconds: float) -> None:
        """Let it pass."""
        self.now += seconds


@pytest.fixture(params=["fake", "redis", "postgres", "fallback"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Give each implementer in turn: the fake, on a clock of its own, each store, and the two together."""
    kind, clock = request.param, Clock()
    if kind == "fake":
        yield Store(FakeRateLimits(lambda: clock.now), clock.wait)
        return
    async with AsyncExitStack() as stack:
        found: list[RateLimits] = []
        if kind != "postgres":
            client = await stack.enter_async_context(Redis.open(request.getfixturevalue("valkey")))
            found.append(redis := RedisRateLimits(client))
        if kind != "redis":
            access = await stack.enter_async_context(Postgres.open(request.getfixturevalue("database")))
            found.append(postgres := PostgresRateLimits(access))
        yield Store(RateLimitsFallback(redis, postgres) if kind == "fallback" else found[0], anyio.sleep)


def bucket(rule: Rule = HOUR) -> Bucket:
    """Return a bucket that nobody else uses."""
    return Bucket(rule, uuid4().hex)


async def test_a_window_admits_its_limit_and_no_more(store: Store) -> None:
    """Five of an hour are admitted with one less remaining each, the sixth is refused and told how long to wait."""
    mine = bucket()
    admissions = [await store.decide(mine) for _ in range(6)]
    assert [a.admitted for a in admissions] == [True] * 5 + [False]
    assert [a.readings[0].remaining for a in admissions] == [4, 3, 2, 1, 0, 0]
    assert [a.retry_after for a in admissions[:5]] == [0.0] * 5
    assert 3590 < admissions[5].retry_after <= 3600.000001
    assert admissions[5].retry_after == admissions[5].readings[0].reset_seconds


async def test_the_first_use_sets_the_reset(store: Store) -> None:
    """An unused window has nothing to reset; a used one is free again when its oldest use leaves it."""
    mine = bucket()
    assert (await store.decide(mine, count=False)).readings[0].reset_seconds == 0
    await store.decide(mine)
    await store.wait(0.05)
    reading = (await store.decide(mine)).readings[0]
    assert reading.rule == HOUR
    assert 3590 < reading.reset_seconds <= 3599.96


async def test_looking_counts_nothing(store: Store) -> None:
    """Any number of looks leaves the window as it is, and tells whether a use would be admitted."""
    mine = bucket()
    looks = [await store.decide(mine, count=False) for _ in range(7)]
    assert {(look.admitted, look.readings[0].remaining) for look in looks} == {(True, 5)}
    for _ in range(5):
        await store.decide(mine)
    assert not (await store.decide(mine, count=False)).admitted


async def test_waiting_retry_after_is_enough(store: Store) -> None:
    """After exactly the seconds named there is one place, however often was asked; the next refusal names the next."""
    mine = bucket(SHORT)
    for _ in range(3):
        assert (await store.decide(mine)).admitted
        await store.wait(0.1)
    for _ in range(3):
        refused, *_ = [await store.decide(mine) for _ in range(5)]
        assert not refused.admitted
        assert 0 < refused.retry_after <= 1
        await store.wait(refused.retry_after)
        assert (await store.decide(mine)).admitted


@pytest.mark.parametrize("store", ["fake"], indirect=True)
async def test_windows_are_closed(store: Store) -> None:
    """At exactly a window's length after a use it still counts, a microsecond later no more."""
    mine = bucket(Rule("one", 1, 1))
    await store.decide(mine)
    await store.wait(1)
    refused = await store.decide(mine)
    assert not refused.admitted
    assert refused.retry_after == pytest.approx(TICK_SECONDS)
    await store.wait(refused.retry_after)
    assert (await store.decide(mine)).admitted


async def test_buckets_count_all_or_none(store: Store) -> None:
    """When one of several windows is full nothing is counted in the others, and its wait is the answer's."""
    narrow, wide = bucket(Rule("narrow", 1, 3600)), bucket()
    assert (await store.decide(narrow, wide)).admitted
    refused = await store.decide(narrow, wide)
    assert not refused.admitted
    assert [reading.remaining for reading in refused.readings] == [0, 4]
    assert [reading.rule.name for reading in refused.readings] == ["narrow", "hour"]
    assert refused.retry_after == refused.readings[0].reset_seconds
    assert (await store.decide(wide, count=False)).readings[0].remaining == 4


async def test_the_longest_wait_is_the_answer(store: Store) -> None:
    """When two windows are full, waiting for both is needed."""
    minute, hour = bucket(Rule("minute", 1, 60)), bucket(Rule("hour", 1, 3600))
    await store.decide(minute, hour)
    assert (await store.decide(minute, hour)).retry_after > 3500


async def test_a_batch_is_decided_in_order(store: Store) -> None:
    """Seven requests in one call are decided as seven calls would be, each from what the one before left."""
    mine, other = bucket(), bucket()
    requests = [Admit((mine,), count=number != 2, ticket=uuid4().hex) for number in range(7)]
    requests.insert(3, Admit((other, mine), count=True, ticket=uuid4().hex))
    admissions = await store.windows.decide(requests)
    assert [a.admitted for a in admissions] == [True, True, True, True, True, True, False, False]
    assert [a.readings[-1].remaining for a in admissions] == [4, 3, 3, 2, 1, 0, 0, 0]
    assert [a.ticket for a in admissions] == [request.ticket for request in requests]


async def test_what_is_given_back_is_free(store: Store) -> None:
    """A ticket that is given back leaves every bucket at once; giving it back again changes nothing."""
    first, second = bucket(), bucket()
    admission = await store.decide(first, second)
    await store.decide(first)
    for _ in range(2):
        await store.windows.give_back([((first, second), admission.ticket)])
    assert (await store.decide(first, count=False)).readings[0].remaining == 4
    assert (await store.decide(second, count=False)).readings[0].remaining == 5


async def test_a_repeated_ticket_counts_once(store: Store) -> None:
    """A request that is repeated after a lost answer is admitted again, even when full, and uses nothing more."""
    mine = bucket()
    for ticket in "abcde":
        await store.decide(mine, ticket=ticket)
    await store.wait(0.1)
    repeated = await store.decide(mine, ticket="a")
    assert repeated.admitted
    assert repeated.readings[0].remaining == 0
    assert repeated.readings[0].reset_seconds <= 3599.91
    assert not (await store.decide(mine, ticket="f")).admitted


async def test_rules_and_subjects_are_apart(store: Store) -> None:
    """Another rule, another length and another subject each have their own window."""
    subject = uuid4().hex
    mine = Bucket(HOUR, subject)
    others = [
        Bucket(Rule("other", 5, 3600), subject),
        Bucket(Rule("hour", 5, 60), subject),
        Bucket(HOUR, subject + "x"),
    ]
    for _ in range(5):
        await store.decide(mine)
    assert [(await store.decide(other)).admitted for other in others] == [True] * 3
    assert not (await store.decide(mine)).admitted


async def test_a_changed_limit_goes_on_with_what_was_counted(store: Store) -> None:
    """A lower limit is full at once and its wait leads below it; a higher one has room."""
    subject = uuid4().hex
    for _ in range(3):
        await store.decide(Bucket(SHORT, subject))
        await store.wait(0.1)
    lower = await store.decide(Bucket(Rule("short", 2, 1), subject))
    assert not lower.admitted
    assert lower.readings[0].remaining == 0
    await store.wait(lower.retry_after)
    assert (await store.decide(Bucket(Rule("short", 2, 1), subject))).admitted
    assert (await store.decide(Bucket(Rule("short", 9, 1), subject))).admitted


async def test_sixteen_at_once_share_one_window(store: Store) -> None:
    """Of sixteen callers at once exactly the limit is admitted."""
    mine = bucket()
    admitted: list[bool] = []

    async def caller() -> None:
        admitted.append((await store.decide(mine)).admitted)

    async with anyio.create_task_group() as callers:
        for _ in range(16):
            callers.start_soon(caller)
    assert sum(admitted) == 5
