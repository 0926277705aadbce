from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest
import redis

from service.adapters.redis_client import BadRedisUrl, Redis, RedisUnavailable, Script
from tests.servers.own_redis import OwnRedis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ECHO = Script("return {KEYS[1], ARGV[1]}")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnRedis]:
    """Run a Redis of the test's own."""
    with OwnRedis(tmp_path) as server:
        yield server


def ping(client: redis.Redis) -> bool:
    """Ask for the least there is."""
    return bool(client.ping())


async def until_back(client: Redis) -> None:
    """Wait until calls pass again; three seconds are enough for every kind of outage."""
    with anyio.fail_after(3):
        while client.statistics().is_open:  # noqa: ASYNC110 - what is awaited is another process
            await anyio.sleep(0.01)


def refused(operator: redis.Redis) -> int:
    """Return how many SETs the server has refused."""
    stats = cast("dict[str, Any]", operator.info("commandstats"))
    return int(stats.get("cmdstat_set", {}).get("rejected_calls", 0))


async def unavailable(client: Redis, calls: int = 1) -> float:
    """Let calls fail one after the other and return the seconds that they took together."""
    begun = time.monotonic()
    for _ in range(calls):
        with pytest.raises(RedisUnavailable):
            await client.call(ping)
    return time.monotonic() - begun


async def stall_costs_one_time_out(server: OwnRedis) -> None:
    """Stop a server under sixteen calls at once, then call it on; then let it answer again."""
    async with Redis.open(server.url) as client:
        assert await client.call(ping)
        server.stall()
        begun = time.monotonic()
        async with anyio.create_task_group() as calls:
            for _ in range(16):
                calls.start_soon(unavailable, client)
        assert 0.2 < time.monotonic() - begun < 0.6
        assert await unavailable(client, calls=100) < 0.2
        server.resume()
        await until_back(client)
        assert await client.call(ping)
        assert client.statistics().opened == 1


async def test_a_stalled_server_costs_one_time_out(server: OwnRedis) -> None:
    """A quarter of a second once, for all that wait; nothing while it lasts; and it is found again (Trio)."""
    await stall_costs_one_time_out(server)


def test_a_stalled_server_costs_one_time_out_on_asyncio(server: OwnRedis) -> None:
    """The same on the other loop."""
    anyio.run(stall_costs_one_time_out, server, backend="asyncio")


async def test_a_killed_server_is_refused_at_once_and_found_again(server: OwnRedis) -> None:
    """Without a server no call waits; with a new one under the same name calls pass within a second or so."""
    async with Redis.open(server.url) as client:
        assert await client.call(ping)
        server.kill()
        assert await unavailable(client, calls=100) < 0.2
        assert client.statistics().is_open
        server.start()
        await until_back(client)
        assert await client.call(ping)


async def test_a_restart_between_two_calls_is_not_noticed(server: OwnRedis) -> None:
    """A pooled connection that a restart cut is replaced within the call."""
    async with Redis.open(server.url) as client:
        assert await client.call(ping)
        server.kill()
        server.start()
        assert await client.call(ping)
        assert client.statistics().opened == 0


async def test_it_opens_without_a_server(tmp_path: Path) -> None:
    """A Redis that is away at the start is an outage like any other."""
    async with Redis.open(f"unix://{tmp_path}/none.sock") as client:
        assert await unavailable(client, calls=10) < 0.2


async def test_nothing_is_sent_twice(server: OwnRedis) -> None:
    """A write that timed out is done once at most, when the server goes on."""
    async with Redis.open(server.url) as client:
        await client.call(ping)
        server.stall()
        with pytest.raises(RedisUnavailable) as outage:
            await client.call(lambda r: r.incr("written"))
        assert outage.value.asked
        server.resume()
        await until_back(client)
        assert await client.call(lambda r: r.get("written")) in {None, b"1"}


async def test_while_away_nothing_is_sent(server: OwnRedis) -> None:
    """A call during an outage says that nothing was asked."""
    async with Redis.open(server.url) as client:
        server.stall()
        await unavailable(client)
        with pytest.raises(RedisUnavailable) as outage:
            await client.call(ping)
        assert not outage.value.asked


async def test_a_server_that_cannot_write_is_away(server: OwnRedis) -> None:
    """Out of memory is an outage until a write succeeds, though reads would be answered."""
    async with Redis.open(server.url) as client:
        await client.call(lambda r: r.config_set("maxmemory", "1"))
        with pytest.raises(RedisUnavailable):
            await client.call(lambda r: r.set("key", "value"))
        assert client.statistics().reason == "OutOfMemoryError"
        with anyio.fail_after(3), redis.Redis.from_url(server.url) as operator:
            while refused(operator) < 3:  # noqa: ASYNC110 - as above; the call and two probes
                await anyio.sleep(0.01)
            assert client.statistics().is_open, "it answers, and yet it is of no use"
            operator.config_set("maxmemory", "0")
        await until_back(client)
        assert await client.call(ping)


async def test_what_is_owed_is_done_before_anyone_is_let_through(server: OwnRedis) -> None:
    """Work registered for the return has run in Redis when the first call passes."""
    async with Redis.open(server.url) as client:
        client.before_return(lambda: partial(_write, value="settled"))
        server.stall()
        await unavailable(client)
        server.resume()
        await until_back(client)
        assert await client.call(lambda r: r.get("debt")) == b"settled"


def _write(client: redis.Redis, value: str) -> None:
    client.set("debt", value)


async def test_scripts_survive_a_wipe(server: OwnRedis) -> None:
    """A server that lost its scripts, by a flush or a restart, answers the next call all the same."""
    async with Redis.open(server.url) as client:
        work = partial(ECHO.run, calls=[(["a"], [1]), (["b"], ["2"])])
        for _ in range(2):
            assert await client.call(work) == [[b"a", b"1"], [b"b", b"2"]]
            await client.call(lambda r: (r.flushall(), r.script_flush()))
        server.kill()
        server.start()
        assert await client.call(work) == [[b"a", b"1"], [b"b", b"2"]]
        assert client.statistics().opened == 0


async def test_an_error_of_a_script_is_an_outage_without_its_text(server: OwnRedis) -> None:
    """What a script raises reaches nobody as text, since it can hold keys."""
    broken = Script("return redis.call('INCR', KEYS[1], 'secret')")
    async with Redis.open(server.url) as client:
        with pytest.raises(RedisUnavailable) as outage:
            await client.call(lambda r: broken.run(r, [(["secret"], [])]))
        assert "secret" not in repr(outage.value) + str(outage.value.__cause__)


async def test_an_asker_can_leave_a_stalled_call(server: OwnRedis) -> None:
    """Cancelling a call returns at once, while its thread waits for its own time-out."""
    async with Redis.open(server.url) as client:
        await client.call(ping)
        server.stall()
        begun = time.monotonic()
        with anyio.move_on_after(0.02):
            await client.call(ping)
        assert time.monotonic() - begun < 0.15
        assert client.statistics().opened == 0


async def test_work_that_no_time_out_ends_is_given_up(server: OwnRedis) -> None:
    """A call that hangs elsewhere, as in a look-up of the server's name, costs a second, once."""
    released = threading.Event()
    async with Redis.open(server.url) as client:
        begun = time.monotonic()
        with pytest.raises(RedisUnavailable):
            await client.call(lambda _: released.wait(10))
        assert 0.9 < time.monotonic() - begun < 1.5
        assert client.statistics().reason == "TimeoutError"
        released.set()
        await until_back(client)
        assert await client.call(ping)


@pytest.mark.parametrize("url", ["http://x", "redis://:pa/ss@host", "redis://host:99999999", "redis://h?db=secret", ""])
async def test_a_bad_url_is_refused_without_being_shown(url: str) -> None:
    """The error's text holds nothing of a URL, which may hold a password."""
    with pytest.raises(BadRedisUrl) as error:
        async with Redis.open(url):
            pass
    assert str(error.value) == "no redis://, rediss:// or unix:// URL of a Redis"
    assert error.value.__cause__ is None
