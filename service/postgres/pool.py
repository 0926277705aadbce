"""Transactions on PostgreSQL: a connection a thread, a deadline for every caller, no failed request over a restart."""

from __future__ import annotations

import select
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from threading import Lock, local
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, LiteralString

import anyio
import psycopg
from loguru import logger

from actors.kit.mailbox import AnswerLost, NotAccepted
from actors.ports import StoreUnavailable
from service.breaker import Breaker, BreakerOpen
from service.postgres.connection import CONNECT_SECONDS, CONNECTION, GOING, configure, cut, first_line, settings
from service.threads import DeadlinePassed, Threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from typing import TypeAlias

    from service.postgres.connection import Connection

    Rows: TypeAlias = list[tuple[Any, ...]]
    Step: TypeAlias = tuple[LiteralString, Mapping[str, object] | None]

THREADS: Final = 4
DEADLINE_SECONDS: Final = 1.5  # the contract answers within 2 s when PostgreSQL is away
GRACE_SECONDS: Final = 0.2  # what the thread may take beyond the deadline to say how far it came
IDLE_SECONDS: Final = 0.05  # a connection that was used since needs no look: looking lets other threads in between
LOOK_SECONDS: Final = 0.05  # between tries to reach a server that went away a moment ago
ROLLED_BACK: Final = "40"  # SQLSTATE: for another transaction's sake
CUT: Final = "08"  # SQLSTATE: a pooler lost the server, perhaps after the statement
LOCKED: Final = "55P03"  # SQLSTATE: the lock did not come in time
UNUSABLE: Final = {  # SQLSTATE: it answers, and nothing can be done there until an operator has done something
    "42P01",  # no such table: emptied, or not migrated
    "42703",  # no such column: a migration is missing
    "42883",  # no such function
    "3F000",  # no such schema
    "42501",  # not allowed
    "25006",  # read-only: a standby
    "0A000",  # a standby too, where BEGIN asks for more
}
BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
# Ready means that a registration would be stored: the schema is there and may be written to, and what is read comes as
# the types that it has.
PROBE: Final = """
SELECT current_setting('transaction_read_only') = 'off' AND bool_and(has_table_privilege(written, 'INSERT')), now()
FROM (SELECT count(*) FROM vestibule.accounts WHERE false) AS present, unnest(ARRAY[
    'vestibule.accounts', 'vestibule.mails', 'vestibule.answers', 'vestibule.business_counts'
]) AS written
"""


class Stalled(Exception):
    """The deadline passed: the server does not answer, or no connection to it could be had."""


class Unusable(Stalled):
    """The server answers, but the database is not ours: not migrated, emptied, read-only."""


class Locked(Exception):
    """Another transaction keeps a lock for too long: nothing was done, and callers who need other rows are served."""


class Lost(Exception):
    """The connection broke under a transaction that must not run twice; the server itself is there again."""


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
            for setting in (BEGIN, *settings(connection, "LOCAL")) if pooled else (BEGIN,):
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
            if connection is not None:
                cut(connection)


class Connections:
    """A connection for each thread, which no other thread uses: made when it is needed, and again when it is stale.

    Stale is one that broke, one on which something came while it was idle, and every one that is older than the last
    outage: the network may have forgotten it.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._mine = local()
        self._counting = Lock()
        self._outages = 0
        self.made = 0
        self.open = 0

    def get(self, transaction: Transaction) -> Connection:
        """Return this thread's connection; raises psycopg.Error when the server takes none."""
        connection: Connection | None = getattr(self._mine, "connection", None)
        now = monotonic()
        if connection is not None and self._mine.outages == self._outages:
            idle, self._mine.used = now - self._mine.used, now
            if not connection.closed and (idle < IDLE_SECONDS or not _has_news(connection)):
                return connection
        self.drop()
        self._mine.outages = self._outages
        try:
            connection = psycopg.connect(self._url, **CONNECTION)
        except psycopg.OperationalError:
            sleep(LOOK_SECONDS)  # in a thread; a server that comes back tells nobody
            raise
        try:
            with transaction.on(connection, sent=False):
                configure(connection)
        except BaseException:
            connection.close()
            raise
        self._mine.connection, self._mine.used = connection, now
        with self._counting:
            self.made += 1
            self.open += 1
        return connection

    def drop(self) -> None:
        """Close this thread's connection, if it has one."""
        connection: Connection | None = getattr(self._mine, "connection", None)
        if connection is not None:
            self._mine.connection = None
            connection.close()
            with self._counting:
                self.open -= 1

    def forget(self) -> None:
        """Have every thread make a new connection before its next transaction."""
        self._outages += 1


def _has_news(connection: Connection) -> bool:
    """Return whether something came on an idle connection: its end, or the reason for it."""
    wire = select.poll()
    wire.register(connection.fileno(), select.POLLIN)
    return bool(wire.poll(0))


def _rows(cursor: psycopg.Cursor[tuple[Any, ...]]) -> Rows:
    return cursor.fetchall() if cursor.description else []


@dataclass(frozen=True, slots=True)
class PostgresStatistics:
    """How many connections are open and unused, how many calls wait, and the connections made and calls late so far."""

    open: int
    free: int
    waiting: int
    made: int
    late: int


class Postgres:
    """Runs transactions of one or a few statements.

    When a connection breaks, as in a restart of the server, the transaction is run again on a new one within the same
    call. A call that passes its deadline opens the breaker: later ones fail at once, until a probe has seen that the
    database takes registrations.
    """

    def __init__(self, connections: Connections, threads: Threads, aside: Threads) -> None:
        self._connections = connections
        self._threads = threads
        self._aside = aside
        self.breaker = Breaker(stalls=(Stalled, DeadlinePassed), refusals=())
        self._reply = ""  # what the server, or the way to it, said last

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Postgres]:
        """Open the threads around the body, without waiting for the server; close their connections after."""
        connections = Connections(url)
        slowest = CONNECT_SECONDS + DEADLINE_SECONDS
        async with (
            Threads("postgres", THREADS, deadline=DEADLINE_SECONDS + GRACE_SECONDS, leave=connections.drop) as threads,
            Threads("postgres-aside", 1, deadline=slowest, leave=connections.drop) as aside,
            anyio.create_task_group() as group,
        ):
            postgres = cls(connections, threads, aside)
            group.start_soon(postgres.breaker.probing, postgres._probe, postgres._log)
            yield postgres
            group.cancel_scope.cancel()

    def statistics(self) -> PostgresStatistics:
        """Return the current figures."""
        threads = self._threads.statistics()
        free = max(0, self._connections.open - threads.busy)
        return PostgresStatistics(self._connections.open, free, threads.waiting, self._connections.made, threads.late)

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
        while transaction.left():
            try:
                return self._once(transaction)
            except psycopg.Error as error:
                self._judge(error)
            if transaction.sent and not repeatable:
                raise Lost
        raise Stalled

    def _once(self, transaction: Transaction) -> list[Rows]:
        connection = self._connections.get(transaction)
        with transaction.on(connection):
            try:
                return transaction.run(connection)
            except BaseException:
                with suppress(psycopg.Error):  # it is broken, and `_judge` drops it
                    connection.rollback()
                raise

    def _judge(self, error: psycopg.Error) -> None:
        """Return when the transaction can be tried again; raise Stalled when the server is no use, else the error."""
        state = error.sqlstate or ""
        if state == LOCKED:
            raise Locked from None
        if state.startswith(ROLLED_BACK):
            return
        if state not in UNUSABLE and not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            raise error
        self._reply = first_line(error)
        if state in UNUSABLE:
            raise Unusable from None
        self._connections.drop()
        if state and not state.startswith((GOING, CUT)):
            raise Stalled from None  # out of disk, memory or connections

    async def _probe(self) -> None:
        """Return if the database takes registrations, on a connection made for this; else raise Stalled."""
        transaction = Transaction([(PROBE, None)])
        try:
            await self._aside.run(lambda: self._try(transaction))
        except DeadlinePassed:
            transaction.give_up()
            raise Stalled from None
        self._connections.forget()

    def _try(self, transaction: Transaction) -> None:
        try:
            [[(usable, _)]] = self._once(transaction)
        except psycopg.OperationalError:
            raise Stalled from None
        except psycopg.Error:
            raise Unusable from None
        finally:
            self._connections.drop()
        if usable is not True:
            raise Unusable

    def _log(self) -> None:
        if self.breaker.is_open:
            log = logger.bind(reason=self.breaker.reason, **({"reply": self._reply} if self._reply else {}))
            log.warning("the database does not answer: requests are refused until it does")
            self._reply = ""
        else:
            logger.info("the database answers again")
