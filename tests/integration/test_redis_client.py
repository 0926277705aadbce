"""The Redis client through outages and refusals, on a server of the test's own."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest
import redis

from service.redis.client import BadRedisUrl, Redis, RedisRefusal, RedisUnavailable, Script, check
from tests.servers.listener import vouch_for_ourselves
from tests.servers.proxy import Proxy
from tests.servers.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers.valkey import ValkeyServer

ECHO = Script("return {KEYS[1], ARGV[1]}")
BROKEN = Script("return redis.call('INCR', KEYS[1], 'secret')")


def ping(client: redis.Redis) -> bool:
    """Ask for the least there is."""
    return bool(client.ping())


async def until_back(client: Redis) -> None:
    """Wait until calls pass again; three seconds are enough for every kind of outage."""
    await until(lambda: not client.breaker.is_open, 3)
    assert await client.call(ping)


async def unavailable(client: Redis, calls: int = 1, *, asked: bool | None = None) -> float:
    """Let calls fail one after the other and return the seconds that they took together."""
    begun = anyio.current_time()
    for _ in range(calls):
        with pytest.raises(RedisUnavailable) as outage:
            await client.call(ping)
        assert asked in {None, outage.value.asked}
    return anyio.current_time() - begun


async def test_a_stalled_server_costs_one_time_out(own_valkey: ValkeyServer) -> None:
    """A third of a second once, for all that wait; nothing while it lasts; and it is found again."""
    async with Redis.open(own_valkey.url) as client:
        assert await client.call(ping)
        own_valkey.stall()
        begun = anyio.current_time()
        async with anyio.create_task_group() as calls:
            for _ in range(16):
                calls.start_soon(unavailable, client)
        assert 0.3 < anyio.current_time() - begun < 0.8
        assert await unavailable(client, calls=100, asked=False) < 0.2
        own_valkey.resume()
        await until_back(client)
        assert client.breaker.opened == 1


async def test_a_restart_between_two_calls_is_not_noticed(own_valkey: ValkeyServer) -> None:
    """A pooled connection that a restart cut is replaced within the call, and scripts work as before."""
    async with Redis.open(own_valkey.url) as client:
        work = partial(ECHO.run, calls=[(["a"], [1]), (["b"], ["2"])])
        for lose in (own_valkey.empty, own_valkey.kill):
            assert await client.call(work) == [[b"a", b"1"], [b"b", b"2"]]
            lose()
        own_valkey.start()
        assert await client.call(work) == [[b"a", b"1"], [b"b", b"2"]]
        assert client.breaker.opened == 0


async def test_nothing_is_sent_twice(own_valkey: ValkeyServer) -> None:
    """A write that timed out is done once at most, when the server goes on."""
    async with Redis.open(own_valkey.url) as client:
        await client.call(ping)
        own_valkey.stall()
        with pytest.raises(RedisUnavailable) as outage:
            await client.call(lambda r: r.incr("written"))
        assert outage.value.asked
        own_valkey.resume()
        await until_back(client)
        assert await client.call(lambda r: r.get("written")) in {None, b"1"}


async def test_a_server_that_refuses_is_away_until_it_refuses_nothing(own_valkey: ValkeyServer) -> None:
    """Its own words are there for the log, and probes fail as the call did, though pings would be answered."""
    async with Redis.open(own_valkey.url) as client:
        with redis.Redis.from_url(own_valkey.url) as operator:
            rights: dict[str, Any] = {"enabled": True, "nopass": True, "keys": ["*"], "categories": ["+@all"]}
            operator.acl_setuser("default", **rights, commands=["-xadd"])
            with pytest.raises(RedisUnavailable):
                await client.call(lambda r: r.xadd("key", {"f": "v"}))
            reply = "has no permissions to run the 'xadd' command"
            assert (client.refusal, client.breaker.is_open) == (reply, True)
            await until(lambda: rejected(operator) >= 3, 3)  # the call and two probes
            assert client.breaker.is_open
            operator.acl_setuser("default", **rights, commands=["+xadd"])
        await until_back(client)
        assert client.refusal == ""


def rejected(operator: redis.Redis) -> int:
    """Return how many XADDs the server has refused."""
    stats = cast("dict[str, Any]", operator.info("commandstats"))
    return int(stats.get("cmdstat_xadd", {}).get("rejected_calls", 0))


@pytest.mark.parametrize("work", [lambda r: BROKEN.run(r, [(["secret"], [])]), lambda r: r.hget("secret", "x")])
async def test_an_error_reply_is_an_outage_without_its_text(
    own_valkey: ValkeyServer, work: Callable[[redis.Redis], object]
) -> None:
    """What a command is refused for is shown as a code only, since the text can hold keys."""
    async with Redis.open(own_valkey.url) as client:
        await client.call(lambda r: r.set("secret", "1"))
        with pytest.raises(RedisUnavailable) as outage:
            await client.call(work)
        assert "secret" not in repr(outage.value) + str(outage.value.__cause__) + client.refusal


async def test_an_asker_can_leave_a_stalled_call(own_valkey: ValkeyServer) -> None:
    """Cancelling a call returns at once, while its thread waits for its own time-out."""
    async with Redis.open(own_valkey.url) as client:
        await client.call(ping)
        own_valkey.stall()
        begun = anyio.current_time()
        with anyio.move_on_after(0.02):
            await client.call(ping)
        assert anyio.current_time() - begun < 0.15
        assert client.breaker.opened == 0


async def test_work_that_no_time_out_ends_is_given_up(valkey: str) -> None:
    """A call that hangs elsewhere, as in a look-up of the server's name, costs a second, once."""
    released = threading.Event()
    async with Redis.open(valkey) as client:
        begun = anyio.current_time()
        with pytest.raises(RedisUnavailable):
            await client.call(lambda _: released.wait(10))
        assert 0.9 < anyio.current_time() - begun < 1.5
        assert client.breaker.reason == "DeadlinePassed"
        released.set()
        await until_back(client)


@pytest.mark.parametrize("url", ["http://x", "redis://:pa/ss@host", "redis://host:99999999", "redis://h?db=secret", ""])
async def test_a_bad_url_is_refused_without_being_shown(url: str) -> None:
    """The error's text holds nothing of a URL, which may hold a password."""
    with pytest.raises(BadRedisUrl) as error:
        async with Redis.open(url):
            pass
    assert str(error.value) == "no redis://, rediss:// or unix:// URL of a Redis"
    assert error.value.__cause__ is None


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({}, ""),
        ({"keys": ["elsewhere:*"], "reset_keys": True}, "No permissions to access a key"),
        ({"commands": ["-hset"]}, "has no permissions to run the 'hset' command"),
        ({"commands": ["-eval"]}, "has no permissions to run the 'eval' command"),
        ({"commands": ["-evalsha"]}, "has no permissions to run the 'evalsha' command"),
        ({"commands": ["-time"]}, "has no permissions to run the 'time' command"),
        ({"passwords": ["-p%w", "+other"]}, "invalid username-password pair or user is disabled."),
    ],
)
def test_a_mistake_of_the_configuration_is_told_from_an_outage(
    own_valkey: ValkeyServer, rules: dict[str, Any], words: str
) -> None:
    """Every right that is missing, and a wrong password, is found at once and named, without the user's name."""
    own = {"enabled": True, "passwords": ["+p%w"], "keys": ["vestibule:*"], "categories": ["+@all"]}
    with redis.Redis.from_url(own_valkey.url) as operator:
        operator.acl_setuser("app", **own)
        if rules:
            operator.acl_setuser("app", **{"enabled": True, **rules})
    url = own_valkey.url.replace("unix://", "unix://app:p%25w@")
    if words:
        with pytest.raises(RedisRefusal, match=f"^{words}"):
            check(url)
    else:
        check(url)
    own_valkey.kill()
    with pytest.raises(RedisUnavailable):
        check(url)


def test_tls_with_a_ca_of_one_s_own(valkey: str, valkey_server: ValkeyServer, tmp_path: Path) -> None:
    """`rediss://` trusts the CA that the URL names, and without it no certificate of that CA."""
    with Proxy(valkey_server.socket, vouch_for_ourselves(tmp_path)) as proxy:
        check(f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={tmp_path / 'cert.pem'}")
        with pytest.raises(RedisRefusal, match="certificate"):
            check(f"rediss://127.0.0.1:{proxy.port}/0")
