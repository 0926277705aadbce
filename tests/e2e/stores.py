"""Everything that an instance keeps or has said, as bytes to search."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import redis
from psycopg import sql

from service.embedded.servers import resolve
from service.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.instance import Instance
    from tests.e2e.ledger import Ledger

TABLES = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
READERS = {
    b"string": "GET",
    b"hash": "HGETALL",
    b"list": "LRANGE",
    b"set": "SMEMBERS",
    b"zset": "ZRANGE",
    b"stream": "XRANGE",
}
ALL = {b"list": (0, -1), b"zset": (0, -1, "WITHSCORES"), b"stream": ("-", "+")}


def logs(instance: Instance) -> Iterator[tuple[str, bytes]]:
    """Yield all that the service and its servers have written for people to read."""
    yield "the service's output", instance.output.read_bytes()
    for path in sorted((instance.data_dir / "logs").iterdir()):
        yield f"the log {path.name}", path.read_bytes()


def stores(instance: Instance) -> Iterator[tuple[str, bytes]]:
    """Yield every table, every value of Redis, and its files, which keep what was deleted a moment ago."""
    servers = resolve(load({f"VESTIBULE_{name}": value for name, value in instance.settings.items()}))
    with psycopg.connect(servers.database_url) as connection:
        for schema, table in connection.execute(TABLES).fetchall():
            rows = connection.execute(sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(schema, table)))
            yield f"the table {table}", "\n".join(row for (row,) in rows).encode()
    with redis.Redis.from_url(servers.redis_url) as client:
        for key in client.scan_iter():
            kind = client.type(key)
            value = client.execute_command(READERS[kind], key, *ALL.get(kind, ()))
            yield f"Redis' {kind.decode()} {key.decode(errors='replace')}", key + b"\n" + repr(value).encode()
    for path in (instance.data_dir / "valkey").rglob("*"):
        if path.is_file():
            yield f"Redis' file {path.name}", path.read_bytes()


def found_in(instance: Instance, ledger: Ledger) -> list[str]:
    """Return a sentence for each secret that is where it must not be; addresses may be in stores, not in logs."""
    found: list[str] = []
    for where, content in logs(instance):
        found += [*ledger.secrets_in(where, content), *ledger.addresses_in(where, content)]
    for where, content in stores(instance):
        found += ledger.secrets_in(where, content)
    return found
