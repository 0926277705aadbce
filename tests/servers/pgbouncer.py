"""PgBouncer in transaction mode before a PostgreSQL: two connections for all clients, and no setting made for us."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Self

import psycopg
import pytest

from tests.servers import processes
from tests.servers.ports import free_ports
from tests.servers.postgres import AS_NOBODY, MAINTENANCE, USER, PostgresServer

if TYPE_CHECKING:
    import subprocess
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


class PgBouncer:
    """Stands before the server around the context; skips the test where PgBouncer is not installed."""

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._port = free_ports()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it and wait until it takes connections."""
        if PROGRAM is None:
            pytest.skip("PgBouncer is not installed")  # looked for above; CI installs it
        configuration, log = self._folder / "pgbouncer.ini", self._folder / "log"
        values = {"sockets": self._server.sockets, "user": USER, "port": self._port}
        configuration.write_text(CONFIGURATION.format(**values), encoding="utf-8")
        self._process = processes.start([PROGRAM, str(configuration)], log, AS_NOBODY)
        processes.wait_ready(self._process, self._ready, log)
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it."""
        if self._process is not None:
            processes.kill(self._process)

    def url_of(self, database: str) -> str:
        """Return the URL of a database behind it."""
        return f"postgresql://{USER}@127.0.0.1:{self._port}/{database}"

    def _ready(self) -> bool:
        try:
            psycopg.connect(self.url_of(MAINTENANCE), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True
