"""A PostgreSQL of a test's own, to stop, kill, wipe and start again."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, urlsplit

import psutil
import psycopg

from service.adapters.postgres_migrations import migrate
from service.embedded.launcher import stop
from service.embedded.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from typing import Any, LiteralString

WIPE = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"


class OwnPostgres:
    """One migrated PostgreSQL, running from the start; the context ends it, in whatever state it is."""

    def __init__(self, folder: Path) -> None:
        self._server = EmbeddedPostgres(folder)
        self._pid = 0
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        migrate(self.url)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def socket(self) -> Path:
        """The Unix socket, for a proxy before it."""
        return Path(parse_qs(urlsplit(self.url).query)["host"][0]) / ".s.PGSQL.5432"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._pid = self._server.start()
        self._server.wait_ready(self._pid)
        self.url = self._server.url

    def restart(self) -> None:
        """Stop it as an operator does, and start it again."""
        stop(self._pid, self._server.stop_signal)
        self.start()

    def kill(self) -> None:
        """Kill it with -9, running, stopped or ended, and its processes with it."""
        if self._pid:
            for process in self._family():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            os.waitpid(self._pid, 0)
            self._pid = 0

    def stall(self) -> None:
        """Stop all its processes: connections stay open, new ones open too, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on, with what they were sent meanwhile."""
        self._signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Drop everything that was ever migrated into it."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(WIPE)

    def query(self, statement: LiteralString) -> list[Any]:
        """Ask it, beside the service."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(statement).fetchall()

    def _family(self) -> list[psutil.Process]:
        postmaster = psutil.Process(self._pid)
        return [postmaster, *postmaster.children(recursive=True)]  # it first: it would start others for those that end

    def _signal(self, number: signal.Signals) -> None:
        for process in self._family():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
