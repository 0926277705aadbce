"""PgBouncer as an operator sets it up: a log-in of its own, a mode, and nothing made for us."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.compat.install import NEW_PGBOUNCER
from tests.servers.ports import free_ports
from tests.servers.postgres import AS_NOBODY, answers
from tests.servers.processes import Server

if TYPE_CHECKING:
    from tests.compat.databases import Database

BINARIES = {"1.18": Path("/usr/sbin/pgbouncer"), "1.24": NEW_PGBOUNCER}
PASSWORD = "pooled"
CONFIGURATION = """
[databases]
{name} = host={sockets} dbname={name}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = {mode}
default_pool_size = {size}
server_login_retry = 0.2
{more}
"""
SIZES = {"transaction": 2, "session": 20, "statement": 2}  # in session mode every connection of ours needs one


class Pooler(Server):
    """A PgBouncer before one database; `more` are lines of its configuration."""

    def __init__(self, database: Database, folder: Path, version: str, mode: str, more: str = "") -> None:
        super().__init__(folder)
        self._port = free_ports()
        self._binary = BINARIES[version]
        self._values = {
            "name": database.name,
            "sockets": str(database.server.sockets),
            "port": self._port,
            "users": str(folder / "users"),
            "mode": mode,
            "size": SIZES[mode],
            "more": more,
        }
        database.run("ALTER ROLE {role} PASSWORD {password}", password=PASSWORD)
        self.url = database.reached_at(host=f"127.0.0.1:{self._port}", password=PASSWORD)

    def start(self) -> None:
        """Start it; the row is untested where it is not installed."""
        if not self._binary.exists():
            pytest.skip(f"{self._binary.name} is not installed at {self._binary}")
        (self._folder / "users").write_text('"{name}" "{secret}"\n'.format(secret=PASSWORD, **self._values))
        (self._folder / "ini").write_text(CONFIGURATION.format(**self._values), encoding="utf-8")
        self.run([str(self._binary), str(self._folder / "ini")], AS_NOBODY)

    def ready(self) -> bool:
        """Return whether it takes connections."""
        return answers(self.url)
