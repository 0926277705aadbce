"""Statements on Postgres: a small pool in threads, a deadline for every caller, no failed request over a restart."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import psycopg
from loguru import logger
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from actors.kit.mailbox import AnswerLost
from actors.ports import StoreUnavailable
from service.adapters.breaker import Breaker, BreakerOpen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from typing import LiteralString

    from psycopg import Connection

    from service.adapters.breaker import BreakerStatistics

DEADLINE_SECONDS = 1.5  # the contract answers within 2 s when Postgres is away
GRACE_SECONDS = 0.2  # what the thread may take beyond the deadline to say how far it came
CONNECT_SECONDS = 2
RUN_AGAIN = ("40", "57P")  # SQLSTATE: rolled back for another transaction's sake; the server goes down or comes up
PROBE: Final = "SELECT 1"


class Stalled(Exception):
    """The deadline passed: the server does not answer, or no connection to it could be had."""


class Statement:
    """One statement on its way through a thread; `sent` says whether the server may have done it."""

    def __init__(self, sql: LiteralString, parameters: Mapping[str, object] | None) -> None:
        self.sql = sql
        self.parameters = parameters
        self.until = monotonic() + DEADLINE_SECONDS
        self.sent = False
        self.connection: Connection[tuple[Any, ...]] | None = None

    def left(self) -> float:
        """Return the seconds until the deadline, never negative."""
        return max(0.0, self.until - monotonic())

    def give_up(self) -> None:
        """Wake the thread that waits for a silent server: its connection is of no use to anyone any more."""
        connection = self.connection
        if connection is None or connection.closed:
            return
        try:
            with socket.socket(fileno=socket.dup(connection.fileno())) as wire:
                wire.shutdown(socket.SHUT_RDWR)
        except (OSError, psycopg.OperationalError):
            return  # it broke by itself in the meantime


class Postgres:
    """Runs single statements, each its own transaction. Every statement must be harmless when it runs twice.

    A stale connection, as after a restart of the server, is replaced within the same call. A call that passes its
    deadline opens the breaker: later ones fail at once, until a probe has seen the server answer.
    """

    def __init__(self, url: str, size: int) -> None:
        self._url = url
        self._size = size
        self._limiter = anyio.CapacityLimiter(size)
        self._breaker = Breaker(stalls=(Stalled,), refusals=())
        self._pool: ConnectionPool[Connection[tuple[Any, ...]]] = ConnectionPool(
            url,
            min_size=1,
            max_size=size,
            open=False,
            timeout=DEADLINE_SECONDS,
            reconnect_timeout=5,  # the default's back-off brings a pool back up to 20 s late
            max_idle=300,
            name="vestibule",
            kwargs={
                "autocommit": True,  # a statement is a transaction
                "connect_timeout": CONNECT_SECONDS,
                "application_name": "vestibule",
                "keepalives_idle": 10,
                "keepalives_interval": 3,
                "keepalives_count": 3,
                "tcp_user_timeout": 5000,
                "options": f"-c statement_timeout={int(DEADLINE_SECONDS * 1000)} -c lock_timeout=1000",
            },
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, *, size: int = 4) -> AsyncIterator[Postgres]:
        """Open the pool around the body, without waiting for the server, and close it after."""
        postgres = cls(url, size)
        await anyio.to_thread.run_sync(lambda: postgres._pool.open(wait=False))
        try:
            async with anyio.create_task_group() as aside:
                aside.start_soon(postgres._breaker.probing, postgres._probe, _tell)
                yield postgres
                aside.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: postgres._pool.close(timeout=1))

    def statistics(self) -> dict[str, int]:
        """Return psycopg's counts of the pool."""
        return dict(self._pool.get_stats())

    def breaker(self) -> BreakerStatistics:
        """Return whether the server is known to be away."""
        return self._breaker.statistics()

    async def run(
        self, sql: LiteralString, parameters: Mapping[str, object] | None = None, *, reading: bool = False
    ) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows.

        Raises StoreUnavailable when nothing was done, which for a `reading` statement is always so, and AnswerLost
        when the statement was sent and its outcome is unknown. Answers within the deadline, whatever the server does.
        """
        statement = Statement(sql, parameters)
        try:
            with self._breaker.guard():
                return await self._in_time(statement)
        except (BreakerOpen, Stalled):
            raise (AnswerLost if statement.sent and not reading else StoreUnavailable) from None

    async def _in_time(self, statement: Statement) -> list[tuple[Any, ...]]:
        with anyio.move_on_after(DEADLINE_SECONDS + GRACE_SECONDS, shield=True):
            return await anyio.to_thread.run_sync(self._work, statement, limiter=self._limiter, abandon_on_cancel=True)
        statement.give_up()
        raise Stalled

    def _work(self, statement: Statement) -> list[tuple[Any, ...]]:
        """Try until it worked or the deadline is near; in a thread."""
        while True:
            try:
                return self._once(statement)
            except (PoolTimeout, PoolClosed, TooManyRequests):
                raise Stalled from None
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if error.sqlstate is None:
                    self._pool.check()  # the connection broke, and the others are as stale as it was
                else:
                    statement.sent = False  # the server says that it did nothing
                    if not error.sqlstate.startswith(RUN_AGAIN):
                        raise Stalled from None
            if not statement.left():
                raise Stalled

    def _once(self, statement: Statement) -> list[tuple[Any, ...]]:
        with self._pool.connection(timeout=statement.left()) as connection:
            statement.connection = connection
            try:
                statement.sent = True
                cursor = connection.execute(statement.sql, statement.parameters)
                return cursor.fetchall() if cursor.description else []
            finally:
                statement.connection = None

    async def _probe(self) -> None:
        """See whether the server answers, on a connection of its own, then renew the pool's."""
        with anyio.move_on_after(CONNECT_SECONDS):
            if await anyio.to_thread.run_sync(self._answers, abandon_on_cancel=True):
                return
        raise Stalled

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self._url, connect_timeout=CONNECT_SECONDS, autocommit=True) as connection:
                connection.execute(PROBE)
            self._pool.check()
        except psycopg.OperationalError:
            return False
        return True


def _tell(state: BreakerStatistics) -> None:
    if state.is_open:
        logger.warning("the database does not answer: requests are refused until it does")
    else:
        logger.info("the database answers again")
