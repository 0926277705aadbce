"""Statements on Postgres: a small pool in threads, a deadline for every caller, no failed request over a restart."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from threading import Lock
from time import sleep
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import psycopg
from loguru import logger
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from actors.kit.mailbox import AnswerLost
from actors.ports import StoreUnavailable
from service.adapters.breaker import Breaker, BreakerOpen
from service.adapters.postgres_statement import DEADLINE_SECONDS, Locked, Stalled, Statement, Unusable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from typing import LiteralString, TypeAlias

    from psycopg import Connection

    from service.adapters.breaker import BreakerStatistics

    Pool: TypeAlias = ConnectionPool[Connection[tuple[Any, ...]]]

GRACE_SECONDS = 0.2  # what the thread may take beyond the deadline to say how far it came
CONNECT_SECONDS = 2  # the shortest that libpq knows
LOOK_SECONDS = 0.05  # between tries to reach a server that went away a moment ago
CLOSE_SECONDS = 0.1  # for the threads of a pool that was replaced; they end by themselves
LOCK_SECONDS = 1.2  # longer than the server takes to see a deadlock (1 s), which it then ends itself
ROLLED_BACK, GOING = "40", "57P"  # SQLSTATE: for another transaction's sake; the server goes down or comes up
LOCKED = "55P03"  # SQLSTATE: the lock did not come in LOCK_SECONDS
UNUSABLE = {  # SQLSTATE: it answers, and nothing can be done there until an operator has done something
    "42P01",  # no such table: emptied, or not migrated
    "42703",  # no such column: a migration is missing
    "42883",  # no such function
    "3F000",  # no such schema
    "42501",  # not allowed
    "25006",  # read-only: a standby
}
COUNTED = ("connections_num", "requests_queued", "requests_errors")  # by each pool, from its start
PROBE: Final = "SELECT current_setting('transaction_read_only') = 'off' FROM (SELECT count(*) FROM users WHERE false) c"


class Postgres:
    """Runs single statements, each its own transaction. Every statement must be harmless when it runs twice.

    When a connection breaks, as in a restart of the server, all of them are replaced within the same call. A call that
    passes its deadline opens the breaker: later ones fail at once, until a probe has seen the server answer.
    """

    def __init__(self, url: str, size: int) -> None:
        self._url = url
        self._size = size
        self._limiter = anyio.CapacityLimiter(size)
        self._breaker = Breaker(stalls=(Stalled,), refusals=())
        self._renewing = Lock()
        self._earlier = Counter[str]()  # what the pools before this one have counted
        self._pool = self._new_pool()

    def _new_pool(self) -> Pool:
        return ConnectionPool(
            self._url,
            min_size=1,
            max_size=self._size,
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
                # In UTC, or a day that is counted in SQL would have 23 hours where clocks change.
                "options": f"-c statement_timeout={DEADLINE_SECONDS}s -c lock_timeout={LOCK_SECONDS}s -c timezone=UTC",
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
        """Return psycopg's figures: the levels of the pool, and the counters of it and all before it."""
        figures = self._pool.get_stats()
        return {**figures, **{name: figures.get(name, 0) + self._earlier[name] for name in COUNTED}}

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
        except (BreakerOpen, Stalled, Locked):
            raise (AnswerLost if statement.sent and not reading else StoreUnavailable) from None

    async def _in_time(self, statement: Statement) -> list[tuple[Any, ...]]:
        with anyio.move_on_after(DEADLINE_SECONDS + GRACE_SECONDS, shield=True):
            return await anyio.to_thread.run_sync(self._work, statement, limiter=self._limiter, abandon_on_cancel=True)
        statement.give_up()
        raise Stalled

    def _work(self, statement: Statement) -> list[tuple[Any, ...]]:
        """Try until it worked or the deadline is near; in a thread."""
        while True:
            pool = self._pool
            try:
                return self._once(pool, statement)
            except PoolClosed:
                if pool is self._pool:
                    raise Stalled from None
            except (PoolTimeout, TooManyRequests):
                raise Stalled from None
            except psycopg.Error as error:
                self._judge(error, pool, statement)
            if not statement.left():
                raise Stalled

    def _judge(self, error: psycopg.Error, pool: Pool, statement: Statement) -> None:
        """Return when the statement can be tried again, raise Stalled when the server is no use, else what it says."""
        state = error.sqlstate or ""
        if state in UNUSABLE:
            raise Unusable from None
        if state == LOCKED:
            raise Locked from None
        if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            raise error
        if not state or state.startswith(GOING):
            self._renew(pool, statement)
        elif not state.startswith(ROLLED_BACK):
            raise Stalled from None

    def _once(self, pool: Pool, statement: Statement) -> list[tuple[Any, ...]]:
        with pool.connection(timeout=statement.left()) as connection, statement.on(connection):
            cursor = connection.execute(statement.sql, statement.parameters)
            return cursor.fetchall() if cursor.description else []

    def _renew(self, broken: Pool, statement: Statement) -> None:
        """Replace a pool as soon as the server lets anyone in; raises Stalled when that is not before the deadline.

        Its connections are as stale as the one that broke, and its own tries to replace them have longer and longer
        pauses. One thread does it, the others wait for it.
        """
        if not self._renewing.acquire(timeout=statement.left()):
            raise Stalled
        try:
            if self._pool is not broken:
                return
            while not self._answers(statement):
                if statement.left() <= LOOK_SECONDS:
                    raise Stalled
                sleep(LOOK_SECONDS)  # in a thread; a server that comes back tells nobody
            fresh = self._new_pool()
            fresh.open(wait=False)
            self._pool = fresh
            last = broken.get_stats()  # after the change: who reads in between sees too little, and never too much
            self._earlier.update({name: last.get(name, 0) for name in COUNTED})
        finally:
            self._renewing.release()
        broken.close(timeout=CLOSE_SECONDS)

    def _answers(self, statement: Statement) -> bool:
        """Return whether the server takes a connection; raises Unusable when it does in vain."""
        try:
            with (
                psycopg.connect(self._url, connect_timeout=CONNECT_SECONDS, autocommit=True) as connection,
                statement.on(connection, sent=False),
            ):
                row = connection.execute(PROBE).fetchone()
        except psycopg.OperationalError:
            return False
        except psycopg.Error:
            raise Unusable from None
        if row != (True,):
            raise Unusable
        return True

    async def _probe(self) -> None:
        """Replace the pool if the server answers, on a connection of its own; else raise Stalled."""
        statement = Statement(PROBE)
        with anyio.move_on_after(CONNECT_SECONDS + DEADLINE_SECONDS):
            await anyio.to_thread.run_sync(self._renew, self._pool, statement, abandon_on_cancel=True)
            return
        statement.give_up()
        raise Stalled


def _tell(state: BreakerStatistics) -> None:
    if state.is_open:
        logger.warning("the database does not answer: requests are refused until it does", reason=state.reason)
    else:
        logger.info("the database answers again")
