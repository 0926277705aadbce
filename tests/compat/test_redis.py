"""Redis and Valkey as they are: rights, TLS, limits of memory, renamed commands, replicas, databases, neighbours."""

from __future__ import annotations

import string
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import redis

from tests.compat.certificates import Certificates
from tests.servers.ports import free_ports
from tests.servers.valkey import ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.compat.databases import Servers
    from tests.compat.setups import Setup

pytestmark = pytest.mark.slow

MODES = ["serve", "worker", "up"]
BINARIES: dict[str, Path | None] = {"Redis 7": Path("/usr/bin/redis-server"), "Valkey 9": None}
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
RULES = (
    "~vestibule:* +ping +time +eval +evalsha +multi +exec +set +exists +del +expire +pexpireat +hset +hdel +hgetall "
    "+zadd +zcard +zscore +zrange +zrem +zremrangebyscore +xadd +xgroup|create +xreadgroup"
)
COMMANDS = [rule.removeprefix("+") for rule in RULES.split() if rule.startswith("+")]
PASSWORD = "s3cret"
RESERVED = string.punctuation


@contextmanager
def server(name: str, row: Setup, settings: Mapping[str, str] | None = None) -> Iterator[ValkeyServer]:
    """Run one with these settings on a port too; the row is untested where it is not installed."""
    binary = BINARIES[name]
    if binary is not None and not binary.exists():
        pytest.skip(f"{name} is not installed: `just compat` says why")
    folder = row.folder / "redis"
    folder.mkdir()
    with ValkeyServer(folder, settings, binary) as one:
        yield one


def admin(one: ValkeyServer) -> redis.Redis:
    """Return a client without limits."""
    return redis.Redis.from_url(one.url)


def as_user(one: ValkeyServer, password: str = PASSWORD) -> str:
    """Return the URL of the user that the rows make."""
    return one.url.replace("unix://", f"unix://app:{password}@")


def allow(one: ValkeyServer, rules: str) -> None:
    """Make the user, or change it."""
    with admin(one) as client:
        client.execute_command("ACL", "SETUSER", "app", "on", f">{PASSWORD}", *rules.split())


@pytest.mark.parametrize("name", BINARIES)
def test_versions(name: str, servers: Servers, row: Setup) -> None:
    """Both work."""
    row.urls["DATABASE_URL"] = servers.database().url
    with server(name, row) as one:
        row.urls["REDIS_URL"] = one.url
        row.works()


@pytest.mark.parametrize("name", BINARIES, ids=[f"{name}, a user with the rights that are listed" for name in BINARIES])
def test_acl(name: str, servers: Servers, row: Setup) -> None:
    """A user needs the rights that docs/operations.md lists, and no more."""
    assert set(RULES.split()) <= set(OPERATIONS.read_text(encoding="utf-8").split())
    row.urls["DATABASE_URL"] = servers.database().url
    with server(name, row) as one:
        allow(one, RULES)
        row.urls["REDIS_URL"] = as_user(one)
        row.works()


@pytest.mark.parametrize("command", COMMANDS, ids=[f"ACL without {command} at the start" for command in COMMANDS])
def test_missing_right(command: str, servers: Servers, row: Setup, valkey_server: ValkeyServer) -> None:
    """Every start ends with a line that names the command."""
    row.urls["DATABASE_URL"] = servers.migrated().url
    allow(valkey_server, f"reset on >{PASSWORD} {RULES} -{command}")
    row.urls["REDIS_URL"] = as_user(valkey_server)
    row.refused(f"REDIS_URL: Redis refuses: .*'{command}'", "serve")


RUNNING = {
    "eval": ("-eval", "'eval'"),
    "zadd, which a script runs": ("-zadd", "'zadd'"),
    "xadd": ("-xadd", "'xadd'"),
    "hset": ("-hset", "'hset'"),
    "xreadgroup": ("-xreadgroup", "'xreadgroup'"),
    "its keys": ("resetkeys", "access a key"),
    "all commands": ("-@all", "has no permissions to run"),
}


@pytest.mark.parametrize("right", RUNNING, ids=[f"ACL loses {right} while it runs" for right in RUNNING])
def test_right_lost(right: str, servers: Servers, row: Setup, valkey_server: ValkeyServer) -> None:
    """Everything goes on, and a line says what Redis refuses."""
    rules, named = RUNNING[right]
    row.urls["DATABASE_URL"] = servers.database().url
    allow(valkey_server, f"reset on >{PASSWORD} {RULES}")
    row.urls["REDIS_URL"] = as_user(valkey_server)
    row.works("refuses to work for us", meanwhile=lambda: allow(valkey_server, rules), named=named)


def test_wrong_password(servers: Servers, row: Setup, valkey_server: ValkeyServer) -> None:
    """It is a mistake, not an outage."""
    row.urls["DATABASE_URL"] = servers.migrated().url
    allow(valkey_server, RULES)
    row.urls["REDIS_URL"] = as_user(valkey_server, "wrong")
    row.refused("REDIS_URL.*invalid username-password pair", *MODES)


def test_password_of_every_reserved_character(servers: Servers, row: Setup, valkey_server: ValkeyServer) -> None:
    """Each works percent-encoded."""
    row.urls["DATABASE_URL"] = servers.database().url
    allow(valkey_server, f"reset on {RULES}")
    with admin(valkey_server) as client:
        client.execute_command("ACL", "SETUSER", "app", f">{RESERVED}")
    row.urls["REDIS_URL"] = as_user(valkey_server, quote(RESERVED, safe=""))
    row.works()


def tls_of(made: Certificates, port: int) -> dict[str, str]:
    """Return the settings of a Redis that speaks TLS."""
    return {
        "tls-port": str(port),
        "tls-cert-file": str(made.certificate),
        "tls-key-file": str(made.key),
        "tls-ca-cert-file": str(made.authority),
        "tls-auth-clients": "no",
    }


@pytest.mark.parametrize("trusted", [True, False], ids=["TLS with an own CA", "TLS with an own CA that is not named"])
def test_tls(trusted: bool, servers: Servers, row: Setup) -> None:  # noqa: FBT001 - a parameter
    """`?ssl_ca_certs=` names it; without it the line says what is not trusted."""
    row.urls["DATABASE_URL"] = servers.migrated().url
    made, port = Certificates.made_in(row.folder), free_ports()
    with server("Redis 7", row, tls_of(made, port)):
        row.urls["REDIS_URL"] = f"rediss://127.0.0.1:{port}/0"
        if trusted:
            row.urls["REDIS_URL"] += f"?ssl_ca_certs={made.authority}"
            row.works()
        else:
            row.refused("REDIS_URL.*certificate.*ssl_ca_certs", *MODES)


def test_maxmemory_reached(servers: Servers, row: Setup) -> None:
    """Everything goes on without it, and a line says why."""
    row.urls["DATABASE_URL"] = servers.database().url
    with server("Valkey 9", row) as one, admin(one) as client:
        row.urls["REDIS_URL"] = one.url
        row.works("refuses to work for us.*maxmemory", meanwhile=lambda: client.config_set("maxmemory", 1))


def test_maxmemory_reached_before_the_start(servers: Servers, row: Setup) -> None:
    """`serve` and `worker` start without it; `up` says why it does not."""
    row.urls["DATABASE_URL"] = servers.migrated().url
    with server("Valkey 9", row, {"maxmemory": "1"}) as one:
        row.urls["REDIS_URL"] = one.url
        row.refused("REDIS_URL.*maxmemory", "up")
        row.works_apart("refuses to work for us.*maxmemory")


RENAMED = {
    "CONFIG, FLUSHALL and KEYS": {"CONFIG", "FLUSHALL", "FLUSHDB", "KEYS", "DEBUG", "SHUTDOWN"},
    "EVALSHA": {"EVALSHA"},
    "XADD": {"XADD"},
}


@pytest.mark.parametrize("names", RENAMED, ids=[f"rename-command for {names}" for names in RENAMED])
def test_renamed_commands(names: str, servers: Servers, row: Setup) -> None:
    """Those of operators are not missed; one of ours is named."""
    row.urls["DATABASE_URL"] = servers.migrated().url
    folder = row.folder / "redis"
    folder.mkdir()
    configuration = folder / "renamed.conf"
    configuration.write_text("".join(f'rename-command {name} ""\n' for name in RENAMED[names]), encoding="utf-8")
    with ValkeyServer(folder, {"include": str(configuration)}, BINARIES["Redis 7"]) as one:
        row.urls["REDIS_URL"] = one.url
        if "CONFIG" in names:
            row.works()
        else:
            row.refused(f"REDIS_URL.*no command '{names.lower()}'", *MODES)


def test_replica(servers: Servers, row: Setup, valkey_server: ValkeyServer) -> None:
    """It can be read only: an outage, which a line explains."""
    row.urls["DATABASE_URL"] = servers.migrated().url
    with server("Redis 7", row, {"replicaof": f"127.0.0.1 {free_ports()}", "masterauth": "none"}) as one:
        row.urls["REDIS_URL"] = one.url
        row.refused("REDIS_URL.*read only replica", "up")
        row.works_apart("refuses to work for us.*read only replica")


def test_fail_over(servers: Servers, row: Setup) -> None:
    """Its replica takes over the address: nothing fails meanwhile, and nothing needs a restart."""
    row.urls["DATABASE_URL"] = servers.database().url
    folder = row.folder / "replica"
    folder.mkdir()
    port, other = free_ports(), free_ports()
    with (
        server("Valkey 9", row, {"port": str(port), "bind": "127.0.0.1"}) as primary,
        ValkeyServer(folder, {"port": str(other), "bind": "127.0.0.1", "replicaof": f"127.0.0.1 {port}"}) as replica,
        admin(replica) as client,
    ):
        row.urls["REDIS_URL"] = f"redis://127.0.0.1:{port}/0"

        def fail_over() -> None:
            primary.kill()
            client.execute_command("REPLICAOF", "NO", "ONE")
            client.config_set("port", str(port))

        row.works("Redis is away", meanwhile=fail_over)


def test_another_database(servers: Servers, row: Setup) -> None:
    """Everything lies in the one that the URL names."""
    row.urls["DATABASE_URL"] = servers.database().url
    with server("Redis 7", row, {"port": str(port := free_ports())}) as one:
        row.urls["REDIS_URL"] = f"redis://127.0.0.1:{port}/5"
        row.works()
        with admin(one) as client:
            assert list(client.info("keyspace")) == ["db5"]


def test_a_database_that_is_not_there(servers: Servers, row: Setup) -> None:
    """It is a mistake, which the line names."""
    row.urls["DATABASE_URL"] = servers.migrated().url
    with server("Redis 7", row, {"port": str(port := free_ports())}):
        row.urls["REDIS_URL"] = f"redis://127.0.0.1:{port}/99"
        row.refused("REDIS_URL.*DB index is out of range", *MODES)


def test_another_taskiq_program_in_the_same_database(servers: Servers, row: Setup, valkey_server: ValkeyServer) -> None:
    """Its stream and its group of the default names are left alone."""
    row.urls["DATABASE_URL"] = servers.database().url
    with admin(valkey_server) as client:
        client.xadd("taskiq", {"data": "theirs"})
        client.xgroup_create("taskiq", "taskiq", "0")
        client.set("vestibule", "theirs")
        row.works()
        assert client.xinfo_groups("taskiq")[0]["entries-read"] is None
        assert client.get("vestibule") == b"theirs"


def test_another_program_s_values_under_our_keys(servers: Servers, row: Setup, valkey_server: ValkeyServer) -> None:
    """They are not overwritten; everything goes on, and a line says what is in the way."""
    row.urls["DATABASE_URL"] = servers.database().url
    with admin(valkey_server) as client:
        client.set("vestibule:wakeups", "theirs")
        row.works("WRONGTYPE")
        assert client.get("vestibule:wakeups") == b"theirs"
