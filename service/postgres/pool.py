"""Transactions on PostgreSQL: a small pool, a deadline for every caller, no failed request over a restart.

A connection depends on nothing outside: after connecting it sets everything that the statements rely on, and it uses no
start-up `options`, which poolers refuse. Behind a pooler (PgBouncer in transaction mode) a session is not ours to keep:
there each statement travels with its settings in a transaction of its own, and nothing is prepared.
"""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from threading import Lock
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, LiteralString

import anyio
import psycopg
from loguru import logger
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from actors.kit.mailbox import AnswerLost, NotAccepted
from actors.ports import StoreUnavailable
from service.breaker import Breaker, BreakerOpen
from service.threads import DeadlinePassed, Threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from typing import TypeAlias

    from service.breaker import BreakerStatistics

    Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
    Rows: TypeAlias = list[tuple[Any, ...]]
    Step: TypeAlias = tuple[LiteralString, Mapping[str, object] | None]

THREADS: Final = 4
DEADLINE_SECONDS: Final = 1.5  # the contract answers within 2 s when PostgreSQL is away
GRACE_SECONDS: Final = 0.2  # what the thread may take beyond the deadline to say how far it came
CONNECT_SECONDS: Final = 2  # the shortest that libpq knows
LOOK_SECONDS: Final = 0.05  # between tries to reach a server that went away a moment ago
CLOSE_SECONDS: Final = 0.1  # for the threads of a pool that was replaced; they end by themselves
ROLLED_BACK: Final = "40"  # SQLSTATE: for another transaction's sake
GOING: Final = "57P"  # SQLSTATE: the server goes down or comes up
CUT: Final = "08"  # SQLSTATE: a pooler lost the server, perhaps after the statement
LOCKED: Final = "55P03"  # SQLSTATE: the lock did not come in time
UNUSABLE: Final = {  # SQLSTATE: it answers, and nothing can be done there until an operator has done something
    "42P01",  # no such table: emptied, or not migrated
    "42703",  # no such column: a migration is missing
    "42883",  # no such function
    "3F000",  # no such schema
    "42501",  # not allowed
    "25006",  # read-only: a standby
}
CONNECTION: Final[dict[str, Any]] = {
    "autocommit": True,  # a statement is a transaction
    "connect_timeout": CONNECT_SECONDS,
    "application_name": "vestibule",
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}
COUNTED: Final = ("connections_num", "requests_queued", "requests_errors")  # by each pool, from its start

# What the statements rely on, whatever the database's or the role's defaults are. PgBouncer keeps the first ones for
# each of its clients; the others it would hand to another one. None may return an interval: how it is written is told
# at the log-in only, and a pooler tells what the database has by default.
SET_TRACKED: Final = """
SET client_encoding = 'UTF8'; SET DateStyle = 'ISO, MDY'; SET TimeZone = 'UTC'; SET standard_conforming_strings = on
"""
SETTINGS: Final = (
    "SET {0} lock_timeout = '1200ms'",  # longer than the server takes to see a deadlock (1 s), which it ends itself
    "SET {0} statement_timeout = '1500ms'",
    "SET {0} search_path = pg_catalog",  # no function or operator of other programs stands before the server's own
    "SET {0} extra_float_digits = 1",
    "SET {0} jit = off",  # compiling takes longer than any statement
)
SET_SESSION: Final = """
{}; SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off
""".format("; ".join(SETTINGS).format("SESSION"))
BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
SET_LOCAL: Final = "; ".join(SETTINGS).format("LOCAL").split("; ")
# Ready means that a registration would be stored: the schema is there and may be written to, and what is read comes as
# the types that it has.
PROBE: Final = """
SELECT current_setting('transaction_read_only') = 'off' AND has_table_privilege('vestibule.accounts', 'INSERT'), now()
FROM (SELECT count(*) FROM vestibule.accounts WHERE false) AS present
"""


class Stalled(Exception):
    """The deadline passed: the server does not answer, or no connection to it could be had."""


class Unusable(Stalled):
    """The server answers, but the database is not ours: not migrated, emptied, read-only."""


class Locked(Exception):
    """Another transaction keeps a lock for too long: nothing was done, and callers who need other rows are served."""


class Lost(Exception):
    """The connection broke under a transaction that must not run twice; the server itself is there again."""


def configure(connection: Connection) -> None:
    """Set what the statements rely on; behind a pooler only what it keeps for its client."""
    connection.execute(SET_TRACKED)
    if behind_pooler(connection):
        connection.prepare_threshold = None
    else:
        connection.execute(SET_SESSION)


def behind_pooler(connection: Connection) -> bool:
    """Return whether something between us and the server answers with a process id of its own."""
    row = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return row is None or int(row[0]) != connection.info.backend_pid


class Transaction:
    """One transaction on its way through a thread; `sent` says whether the server may have done it."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        self.until = monotonic() + DEADLINE_SECONDS
        self.sent = False
        self._given_up = False
        self._connection: Connection | None = None
        self._guard = Lock()

    def left(self) -> float:
        """Return the seconds until the deadline, never negative."""
        return max(0.0, self.until - monotonic())

    def run(self, connection: Connection) -> list[Rows]:
        """Return the rows of each statement."""
        pooled = connection.prepare_threshold is None
        if len(self.steps) == 1 and not pooled:
            return [_rows(connection.execute(*self.steps[0]))]
        with connection.pipeline():
            for setting in (BEGIN, *SET_LOCAL) if pooled else (BEGIN,):
                connection.execute(setting)
            cursors = [connection.execute(*step) for step in self.steps]
            connection.execute("COMMIT")
        return [_rows(cursor) for cursor in cursors]

    @contextmanager
    def on(self, connection: Connection, *, sent: bool = True) -> Iterator[None]:
        """Mark the connection that the body waits for; raises Stalled when nobody waits for the outcome any more.

        A body that fails with the server's own words did nothing; what an earlier one may have done stays unknown.
        """
        with self._guard:
            if self._given_up:
                raise Stalled
            self._connection = connection
            before, self.sent = self.sent, self.sent or sent
        try:
            yield
        except psycopg.Error as error:
            if error.sqlstate and not error.sqlstate.startswith(CUT):
                self.sent = before
            raise
        finally:
            with self._guard:
                self._connection = None

    def give_up(self) -> None:
        """Wake the thread that waits for a silent server: its connection is of no use to anyone any more."""
        with self._guard:
            self._given_up = True
            connection = self._connection
            if connection is None or connection.closed:
                return
            try:
                with socket.socket(fileno=socket.dup(connection.fileno())) as wire:
                    wire.shutdown(socket.SHUT_RDWR)
            except (OSError, psycopg.OperationalError):
                return  # it broke by itself in the meantime


def _rows(cursor: psycopg.Cursor[tuple[Any, ...]]) -> Rows:
    return cursor.fetchall() if cursor.description else []


class Postgres:
    """Runs single statements, each its own transaction.

    When a connection breaks, as in a restart of the server, all of them are replaced within the same call. A call that
    passes its deadline opens the breaker: later ones fail at once, until a probe has seen the server answer.
    """

    def __init__(self, url: str, threads: Threads, aside: Threads) -> None:
        self._url = url
        self._threads = threads
        self._aside = aside
        self.breaker = Breaker(stalls=(Stalled, DeadlinePassed), refusals=())
        self._renewing = Lock()
        self._earlier = Counter[str]()  # what the pools before this one have counted
        self._pool = self._new_pool()

    def _new_pool(self) -> ConnectionPool[Connection]:
        return ConnectionPool(
            self._url,
            min_size=1,
            max_size=THREADS,
            open=False,
            timeout=DEADLINE_SECONDS,
            reconnect_timeout=5,  # the default's back-off brings a pool back up to 20 s late
            max_idle=300,
            name="vestibule",
            configure=configure,
            kwargs=CONNECTION,
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Postgres]:
        """Open the pool around the body, without waiting for the server, and close it after."""
        async with AsyncExitStack() as stack:
            deadline = DEADLINE_SECONDS + GRACE_SECONDS
            threads = await stack.enter_async_context(Threads.open("postgres", THREADS, deadline=deadline))
            aside = await stack.enter_async_context(
                Threads.open("postgres-aside", 1, deadline=CONNECT_SECONDS + DEADLINE_SECONDS)
            )
            postgres = cls(url, threads, aside)
            await aside.run(lambda: postgres._pool.open(wait=False))
            group = await stack.enter_async_context(anyio.create_task_group())
            group.start_soon(postgres.breaker.probing, postgres._probe, _log)
            try:
                yield postgres
            finally:
                group.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await aside.run(lambda: postgres._pool.close(timeout=1))

    async def check(self) -> None:
        """Return if a registration would be stored; raises StoreUnavailable."""
        [(usable, _)] = await self.run(PROBE, reading=True)
        if usable is not True:
            raise StoreUnavailable

    def statistics(self) -> dict[str, int]:
        """Return psycopg's figures: the levels of the pool, and the counters of it and all before it."""
        figures = self._pool.get_stats()
        return {**figures, **{name: figures.get(name, 0) + self._earlier[name] for name in COUNTED}}

    async def run(
        self,
        sql: LiteralString,
        parameters: Mapping[str, object] | None = None,
        *,
        reading: bool = False,
        repeatable: bool = True,
    ) -> Rows:
        """Run one statement and return its rows; as `run_steps`.

        A `reading` statement changes nothing, so it raises no AnswerLost. One that may have been done before its
        connection broke is run again only if it is `repeatable`.
        """
        [rows] = await self.run_steps([(sql, parameters)], reading=reading, repeatable=repeatable)
        return rows

    async def run_steps(self, steps: Sequence[Step], *, reading: bool = False, repeatable: bool = True) -> list[Rows]:
        """Run statements as one transaction, in one round trip, and return the rows of each.

        Raises StoreUnavailable when nothing was done and AnswerLost when they were sent and their outcome is unknown.
        Answers within the deadline, whatever the server does.
        """
        transaction = Transaction(steps)
        try:
            with self.breaker.guard():
                return await self._threads.run(lambda: self._work(transaction, repeatable=repeatable or reading))
        except DeadlinePassed:
            transaction.give_up()
        except (BreakerOpen, Stalled, Locked, Lost, NotAccepted):
            pass
        raise (AnswerLost if transaction.sent and not reading else StoreUnavailable) from None

    def _work(self, transaction: Transaction, *, repeatable: bool) -> list[Rows]:
        """Try until it worked or the deadline is near; in a thread."""
        while True:
            pool = self._pool
            try:
                with pool.connection(timeout=transaction.left()) as connection, transaction.on(connection):
                    return transaction.run(connection)
            except PoolClosed:
                if pool is self._pool:
                    raise Stalled from None
            except (PoolTimeout, TooManyRequests):
                raise Stalled from None
            except psycopg.Error as error:
                self._judge(error, pool, transaction)
            if transaction.sent and not repeatable:
                raise Lost
            if not transaction.left():
                raise Stalled

    def _judge(self, error: psycopg.Error, pool: ConnectionPool[Connection], transaction: Transaction) -> None:
        """Return when the statement can be tried again, raise Stalled when the server is no use, else what it says."""
        state = error.sqlstate or ""
        if state in UNUSABLE:
            raise Unusable from None
        if state == LOCKED:
            raise Locked from None
        if state.startswith(ROLLED_BACK):
            return
        if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            raise error
        if state and not state.startswith((GOING, CUT)):
            raise Stalled from None  # out of disk, memory or connections
        self._renew(pool, transaction)

    def _renew(self, broken: ConnectionPool[Connection], transaction: Transaction) -> None:
        """Replace a pool as soon as the server lets anyone in; raises Stalled when that is not before the deadline.

        Its connections are as stale as the one that broke, and its own tries to replace them have longer and longer
        pauses. One thread does it, the others wait for it.
        """
        if not self._renewing.acquire(timeout=transaction.left()):
            raise Stalled
        try:
            if self._pool is not broken:
                return
            while not self._answers(transaction):
                if transaction.left() <= LOOK_SECONDS:
                    raise Stalled
                sleep(LOOK_SECONDS)  # in a thread; a server that comes back tells nobody
            fresh = self._new_pool()
            fresh.open(wait=False)
            self._pool = fresh
            last = broken.get_stats()  # after the change: a reader in between sees too little, and never too much
            self._earlier.update({name: last.get(name, 0) for name in COUNTED})
        finally:
            self._renewing.release()
        broken.close(timeout=CLOSE_SECONDS)

    def _answers(self, transaction: Transaction) -> bool:
        """Return whether the server takes a connection; raises Unusable when it does in vain."""
        try:
            with psycopg.connect(self._url, **CONNECTION) as connection, transaction.on(connection, sent=False):
                configure(connection)
                [[(usable, _)]] = Transaction([(PROBE, None)]).run(connection)
        except psycopg.OperationalError:
            return False
        except psycopg.Error:
            raise Unusable from None
        if usable is not True:
            raise Unusable
        return True

    async def _probe(self) -> None:
        """Replace the pool if the server answers, on a connection of its own; else raise Stalled."""
        transaction = Transaction([(PROBE, None)])
        try:
            await self._aside.run(lambda: self._renew(self._pool, transaction))
        except DeadlinePassed:
            transaction.give_up()
            raise Stalled from None


def _log(state: BreakerStatistics) -> None:
    if state.is_open:
        logger.warning("the database does not answer: requests are refused until it does", reason=state.reason)
    else:
        logger.info("the database answers again")
