"""PgBouncer in transaction mode before a PostgreSQL: two connections for all clients, and no setting made for us."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.servers.ports import free_ports
from tests.servers.postgres import AS_NOBODY, MAINTENANCE, USER, PostgresServer, answers
from tests.servers.processes import Server

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
CONFIGURATION = """
[databases]
* = host={sockets} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
server_login_retry = 0.2
"""


class PgBouncer(Server):
    """Stands before the server around the context; skips the test where PgBouncer is not installed."""

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        super().__init__(folder)
        self._server = server
        self._port = free_ports()

    def start(self) -> None:
        """Start it."""
        if PROGRAM is None:
            pytest.skip("PgBouncer is not installed")  # looked for above; CI installs it
        configuration = self._folder / "pgbouncer.ini"
        values = {"sockets": self._server.sockets, "user": USER, "port": self._port}
        configuration.write_text(CONFIGURATION.format(**values), encoding="utf-8")
        self.run([PROGRAM, str(configuration)], AS_NOBODY)

    def url_of(self, database: str) -> str:
        """Return the URL of a database behind it."""
        return f"postgresql://{USER}@127.0.0.1:{self._port}/{database}"

    def ready(self) -> bool:
        """Return whether it takes connections."""
        return answers(self.url_of(MAINTENANCE))
