"""Measures what the statements of a registration cost the server: look, register, claim and accepted, in batches.

Prints the CPU milliseconds of the connection's server process, and of this one, per registration; the best of some
rounds, on a PostgreSQL of its own. What one statement costs alone, as the worst case of batches of 1, is below.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

import anyio
import psycopg

from actors.domain.email_address import EmailAddress
from actors.domain.mail import MailKind
from actors.domain.user import CodePolicy
from actors.ports import NewMail, Register
from service.embedded.postgres import EmbeddedPostgres
from service.postgres.accounts import PostgresAccounts
from service.postgres.connection import CONNECTION, configure
from service.postgres.ids import uuid7
from service.postgres.mails import PostgresMailQueue
from service.postgres.migrations import migrate
from service.postgres.pool import Transaction
from service.processes.spawn import fork

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, LiteralString

POLICY = CodePolicy(attempts=5, ttl_seconds=60, max_age_seconds=900, cooldown_seconds=30, budgets=())
HASH = b"$2b$12$" + b"x" * 53
BATCHES = (1, 4, 8, 16)
STEPS = ("look", "register", "claim", "accepted")


class Direct:
    """Runs statements on one connection in the caller's thread, as a thread of the service does."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    async def run(
        self, sql: LiteralString, parameters: Mapping[str, object] | None = None, **_: bool
    ) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        [rows] = Transaction([(sql, parameters)]).run(self._connection)
        return rows


class Clocks:
    """Sums up the CPU seconds of the server's process and of this one, by step."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._scheduled = Path(f"/proc/{connection.info.backend_pid}/schedstat")  # nanoseconds on a CPU come first
        self.server: dict[str, float] = defaultdict(float)
        self.client = 0.0

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        """Count what the body takes."""
        server, client = self._read(), process_time()
        yield
        self.client += process_time() - client
        self.server[step] += self._read() - server

    def _read(self) -> float:
        return int(self._scheduled.read_text(encoding="ascii").split()[0]) / 1e9


async def measure(connection: psycopg.Connection, batch: int, count: int) -> Clocks:
    """Register so many accounts, and send their mails."""
    postgres, clocks = Direct(connection), Clocks(connection)
    accounts = PostgresAccounts(postgres, POLICY, "bench")  # type: ignore[arg-type]  # all that it uses is `run`
    queue = PostgresMailQueue(postgres, POLICY, "bench")  # type: ignore[arg-type]  # as above
    for _ in range(count // batch):
        new = [_new_account() for _ in range(batch)]
        with clocks.of("look"):
            await accounts.find([one.email.key for one in new])
        with clocks.of("register"):
            await accounts.add(new)
        with clocks.of("claim"):
            mails = await queue.claim(batch)
        with clocks.of("accepted"):
            accepted = await queue.accepted(mails)
        if len(accepted) != batch:
            raise SystemExit(f"{len(accepted)} of {batch} mails were accepted: the figures mean nothing")
    return clocks


def _new_account() -> Register:
    key = f"{uuid7().hex}@example.com"
    return Register(uuid7(), EmailAddress(key, key), HASH, "en", NewMail(uuid7(), MailKind.CODE, "k1"))


def main() -> None:
    """Print a table: a row for each size of the batches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accounts", type=int, default=2000, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--analysed", action="store_true", help="with the statistics of a database in use")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vestibule-bench-", dir="/tmp") as folder:
        server, parent = EmbeddedPostgres(Path(folder)), os.getpid()
        pid = fork(lambda: server.become(parent))
        try:
            server.wait_ready(pid)
            migrate(server.url)
            print(f"{'batch':>5} " + " ".join(f"{step:>9}" for step in (*STEPS, "server", "client")) + "  CPU ms")
            with psycopg.connect(server.url, **CONNECTION) as connection:
                configure(connection)
                for batch in BATCHES:
                    row(connection, batch, options)
        finally:
            os.kill(pid, server.stop_signal)
            os.waitpid(pid, 0)


def row(connection: psycopg.Connection, batch: int, options: argparse.Namespace) -> None:
    """Measure and print one row."""
    anyio.run(measure, connection, batch, 20 * batch)  # prepares the statements
    if options.analysed:
        connection.execute("VACUUM ANALYZE")
    rounds = [anyio.run(measure, connection, batch, options.accounts) for _ in range(options.rounds)]
    best = min(rounds, key=lambda clocks: sum(clocks.server.values()))
    figures = [*(best.server[step] for step in STEPS), sum(best.server.values()), min(one.client for one in rounds)]
    done = options.accounts // batch * batch
    print(f"{batch:5} " + " ".join(f"{1000 * seconds / done:9.3f}" for seconds in figures))


if __name__ == "__main__":
    main()
