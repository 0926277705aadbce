from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import redis

from service.embedded.errors import BadEnvironment
from service.embedded.redis import EmbeddedRedis
from tests.servers.running import kill, served

if TYPE_CHECKING:
    from pathlib import Path


def test_a_killed_server_starts_again_with_its_data(data_dir: Path) -> None:
    """Whatever was acknowledged survives kill -9."""
    server = EmbeddedRedis(data_dir)
    with served(server) as pid:
        with redis.Redis.from_url(server.url) as client:
            for number in range(1000):
                client.set(f"key:{number}", number)
        kill(pid)
        with served(server), redis.Redis.from_url(server.url) as client:
            assert client.dbsize() == 1000


def test_it_is_set_up_to_forget_nothing_and_to_listen_nowhere(data_dir: Path) -> None:
    """An append-only file, no eviction, no port, scripts, and a socket for its owner alone."""
    server = EmbeddedRedis(data_dir)
    with served(server), redis.Redis.from_url(server.url, decode_responses=True) as client:
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "port": "0"}
        assert {name: client.config_get(name)[name] for name in wanted} == wanted
        assert client.eval("return redis.call('time')[1]", 0)
        assert (data_dir / "run").stat().st_mode & 0o077 == 0


def test_a_torn_end_of_its_file_is_cut_off(data_dir: Path) -> None:
    """Half a command at the end of the file, as a power cut leaves it, costs that command alone."""
    server = EmbeddedRedis(data_dir)
    with served(server), redis.Redis.from_url(server.url) as client:
        client.set("kept", 1)
    (tail,) = (data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
    with tail.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$4\r\nto")
    with served(server), redis.Redis.from_url(server.url) as client:
        assert client.get("kept") == b"1"


def test_a_spoilt_file_is_put_aside(data_dir: Path) -> None:
    """Redis only wakes and limits: data beyond repair must not keep the service down, and is kept for whoever asks."""
    server = EmbeddedRedis(data_dir)
    with served(server), redis.Redis.from_url(server.url) as client:
        client.set("lost", 1)
    (tail,) = (data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
    tail.write_bytes(b"spoilt" * 100)
    pid = server.start()
    with pytest.raises(BadEnvironment, match="next start puts the file aside"):
        server.wait_ready(pid)
    os.waitpid(pid, 0)
    with served(server), redis.Redis.from_url(server.url) as client:
        assert client.dbsize() == 0
    assert (data_dir / "valkey.spoilt" / "appendonlydir").exists()


def test_a_second_launcher_is_refused(data_dir: Path) -> None:
    """Two servers never write one file."""
    server = EmbeddedRedis(data_dir)
    with served(server), pytest.raises(BadEnvironment, match="already running"):
        EmbeddedRedis(data_dir).start()
