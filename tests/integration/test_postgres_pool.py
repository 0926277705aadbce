"""Statements on PostgreSQL through outages, foreign defaults and a pooler."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, LiteralString

import anyio
import psycopg
import pytest
from psycopg import sql

from actors.kit.mailbox import AnswerLost
from actors.ports import StoreUnavailable
from service.postgres.pool import PROBE, Postgres, PostgresStatistics, Stalled, Transaction
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Proxy
from tests.servers.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

AWAY_SECONDS = 2.0
BACK_SECONDS = 5.0
NAP = "SELECT pg_sleep(0.2)"
ANSWER = "SELECT count(*) FROM vestibule.accounts"
WRITE = (
    "INSERT INTO vestibule.business_counts (day, worker, resends) VALUES ('2026-01-01', 'test', 1) "
    "ON CONFLICT (day, worker) DO UPDATE SET resends = vestibule.business_counts.resends + 1"
)
WRITTEN = "SELECT coalesce(sum(resends), 0)::int FROM vestibule.business_counts WHERE worker = 'test'"
BUSY = "INSERT INTO vestibule.business_counts (day, worker) VALUES ('2026-01-02', 'busy')"
TOUCH = "INSERT INTO vestibule.business_counts (day, worker) VALUES ('2026-01-02', 'busy') ON CONFLICT DO NOTHING"
CUT_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Run a PostgreSQL; a test heals what it hurts."""
    with PostgresServer(tmp_path_factory.mktemp("pg")) as one:
        yield one


@pytest.fixture
def proxy(server: PostgresServer) -> Iterator[Proxy]:
    """Stand before it."""
    with Proxy(server.socket) as one:
        yield one


@pytest.fixture(scope="module")
def pgbouncer(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer]:
    """Stand before it and hand every transaction to whichever connection is free."""
    with PgBouncer(server, tmp_path_factory.mktemp("pb")) as one:
        yield one


@asynccontextmanager
async def opened(proxy: Proxy) -> AsyncIterator[Postgres]:
    """Give the pool through the proxy, with as many connections as it may have."""
    async with Postgres.open(f"postgresql://vestibule@127.0.0.1:{proxy.port}/vestibule") as postgres:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(postgres.run, NAP)
        yield postgres


async def back(postgres: Postgres) -> None:
    """Wait until it works again, and see that it goes on working on every connection."""
    await until(lambda: not postgres.breaker.is_open, BACK_SECONDS)
    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(postgres.run, ANSWER)
    assert (await postgres.run(PROBE, reading=True))[0][0] is True


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(lambda _, proxy: proxy.cut(), id="the network cuts them"),
        pytest.param(lambda server, _: server.query(CUT_OTHERS), id="an administrator ends them"),
        pytest.param(lambda server, _: server.restart(), id="the server restarts"),
    ],
)
async def test_connections_that_end_fail_no_statement(
    server: PostgresServer, proxy: Proxy, cut: Callable[[PostgresServer, Proxy], object]
) -> None:
    """All connections are stale at once: each statement finds another one, and the breaker stays closed.

    A connection that has been idle is seen to be stale before anything is sent, so this holds for statements that must
    not run twice too.
    """
    async with opened(proxy) as postgres:
        for repeatable in (False, True):
            cut(server, proxy)
            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(partial(postgres.run, WRITE, repeatable=repeatable))
        assert postgres.breaker.opened == 0


async def test_statistics_count_connections(proxy: Proxy) -> None:
    """Open ones are a level, those made a counter; at the end all are closed."""
    async with opened(proxy) as postgres:
        assert postgres.statistics() == PostgresStatistics(open=4, free=4, waiting=0, made=4, late=0)
        await anyio.to_thread.run_sync(proxy.cut)
        await postgres.run(WRITE)
        assert postgres.statistics() == PostgresStatistics(open=4, free=4, waiting=0, made=5, late=0)
    assert postgres.statistics().open == 0


async def test_a_statement_that_may_have_been_done_is_repeated_only_if_that_is_harmless(
    server: PostgresServer, proxy: Proxy
) -> None:
    """One that is not repeatable raises AnswerLost when its connection breaks, and the server is not taken for away."""
    async with opened(proxy) as postgres:
        await postgres.run(WRITE)
        [(before,)] = server.query(WRITTEN)

        async def cut_it() -> None:
            await anyio.sleep(0.1)  # the statement naps
            await anyio.to_thread.run_sync(proxy.cut)

        async with anyio.create_task_group() as group:
            group.start_soon(cut_it)
            with pytest.raises(AnswerLost):
                await postgres.run(f"{WRITE} RETURNING (SELECT pg_sleep(0.3))", repeatable=False)
        assert postgres.breaker.opened == 0
        await until(lambda: server.query(WRITTEN) != [(before,)], BACK_SECONDS)  # the server ends it unheard
        assert server.query(WRITTEN) == [(before + 1,)]


async def test_a_write_whose_answer_is_lost_says_so(server: PostgresServer, proxy: Proxy) -> None:
    """A statement that a stopped server holds may be done later; one that comes after it is never sent."""
    async with opened(proxy) as postgres:
        server.stall()
        with anyio.fail_after(AWAY_SECONDS), pytest.raises(AnswerLost):
            await postgres.run(WRITE)
        with anyio.fail_after(0.1), pytest.raises(StoreUnavailable):
            await postgres.run(WRITE)
        server.resume()
        await back(postgres)


@pytest.mark.parametrize("standby", [True, False])
async def test_a_database_that_takes_no_registration_is_an_outage(
    server: PostgresServer, proxy: Proxy, *, standby: bool
) -> None:
    """A standby, or one with another schema, answers and is away until a registration would be stored again."""
    async with opened(proxy) as postgres:
        server.demote() if standby else server.query("ALTER TABLE vestibule.accounts RENAME TO theirs")
        with anyio.fail_after(AWAY_SECONDS), pytest.raises(StoreUnavailable):
            await postgres.run_steps([(ANSWER, None), (WRITE, None)])
        await anyio.sleep(0.5)  # time for some probes, none of which may close it
        assert postgres.breaker.is_open
        server.promote() if standby else server.query("ALTER TABLE vestibule.theirs RENAME TO accounts")
        await back(postgres)


async def test_a_full_disk_is_an_outage_and_a_mistake_is_raised_as_it_is(proxy: Proxy) -> None:
    """What the server could not do was not done; what it says about data is no outage."""
    async with opened(proxy) as postgres:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await postgres.run("SELECT 1 / 0")
        assert postgres.breaker.opened == 0
        with pytest.raises(StoreUnavailable):
            await postgres.run("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'disk_full'; END $$")
        assert postgres.breaker.is_open
        await back(postgres)


async def test_a_row_that_is_locked_is_no_outage(server: PostgresServer, proxy: Proxy) -> None:
    """A statement that waits too long for a lock was not done; all others are served meanwhile and after."""
    async with opened(proxy) as postgres:
        with psycopg.connect(server.url) as operator:
            operator.execute(BUSY)
            with pytest.raises(StoreUnavailable):
                await postgres.run(TOUCH)
            await postgres.run(ANSWER)
        assert postgres.breaker.opened == 0


async def test_a_deadlock_fails_no_transaction(proxy: Proxy) -> None:
    """The one that the server ends, after a second, is run again."""
    lock: LiteralString = "SELECT pg_advisory_xact_lock({}), pg_sleep(0.05)"
    async with opened(proxy) as postgres:
        begun = anyio.current_time()
        async with anyio.create_task_group() as group:
            for first, second in ((1, 2), (2, 1)):
                steps = [(lock.format(number), None) for number in (first, second)]
                group.start_soon(postgres.run_steps, steps)
        assert anyio.current_time() - begun > 1.0, "there was no deadlock"


def test_a_refusal_says_nothing_about_the_try_before_it(server: PostgresServer) -> None:
    """A try whose connection broke may have been done, whatever the server answers to the next one."""
    transaction = Transaction([(WRITE, None)])
    with psycopg.connect(server.url) as connection:
        for error, sent in (
            (psycopg.errors.LockNotAvailable(), False),
            (psycopg.OperationalError(), True),
            (psycopg.errors.LockNotAvailable(), True),
        ):
            with pytest.raises(type(error)), transaction.on(connection):
                raise error
            assert transaction.sent is sent


async def test_a_statement_that_was_given_up_is_never_sent(server: PostgresServer) -> None:
    """A caller that was told that nothing was done can rely on it, however late the thread comes."""
    transaction = Transaction([(ANSWER, None)])
    transaction.give_up()
    with psycopg.connect(server.url) as connection, pytest.raises(Stalled), transaction.on(connection):
        pass
    assert not transaction.sent


HOSTILE = {
    "client_encoding": "LATIN1",
    "DateStyle": "SQL, DMY",
    "TimeZone": "America/New_York",
    "search_path": "elsewhere, pg_catalog",
    "array_nulls": "off",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "standard_conforming_strings": "off",
    "extra_float_digits": "-10",
    "statement_timeout": "100ms",
    "bytea_output": "escape",
}
MOMENT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
ROUND_TRIP = r"""
SELECT %(text)s::text, '\d'::text, %(moment)s::timestamptz, %(moment)s::timestamptz::date::text, %(float)s::float8,
    %(bytes)s::bytea, %(list)s::text[], current_setting('transaction_isolation'), current_setting('lock_timeout'),
    current_setting('statement_timeout')
"""
VALUES = {"text": "naïve 例え", "moment": MOMENT, "float": 0.1 + 0.2, "bytes": b"\x00\\\xff", "list": ["a", None]}


@pytest.fixture(params=["directly", "behind PgBouncer"])
def foreign(server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """Give the URL of a migrated database whose defaults are all wrong for us."""
    name = server.clone()
    for setting, value in HOSTILE.items():
        names = sql.Identifier(name), sql.Identifier(setting), sql.Literal(value)
        server.maintain(sql.SQL("ALTER DATABASE {} SET {} = {}").format(*names))
    pooled = request.param != "directly"
    yield request.getfixturevalue("pgbouncer").url_of(name) if pooled else server.url_of(name)
    server.drop(name)


async def test_nothing_depends_on_the_defaults_of_the_database(foreign: str) -> None:
    """Statements read, write and wait as written, whatever defaults the database or the role has."""
    async with Postgres.open(foreign) as postgres:
        [row] = await postgres.run(ROUND_TRIP, VALUES)
        assert row[:5] == (VALUES["text"], r"\d", MOMENT, "2026-03-04", VALUES["float"])
        assert row[5:7] == (VALUES["bytes"], VALUES["list"])
        assert row[7:] == ("read committed", "1200ms", "1500ms")
        [(before,)] = await postgres.run(WRITTEN, reading=True)
        await postgres.run(WRITE)
        await postgres.run("SELECT pg_sleep(0.3)")
        assert await postgres.run(WRITTEN, reading=True) == [(before + 1,)]


async def test_a_pooler_is_noticed_and_needs_no_setting(server: PostgresServer, pgbouncer: PgBouncer) -> None:
    """Many statements of two workers share two connections; nothing is prepared, and errors leave none in between."""
    url = pgbouncer.url_of("vestibule")
    done = 0

    async def work(postgres: Postgres) -> None:
        nonlocal done
        for number in range(20):
            rows = await postgres.run_steps([("SELECT %(n)s::int", {"n": number}), ("SELECT txid_current()", None)])
            assert rows[0] == [(number,)]
            with pytest.raises(psycopg.errors.DivisionByZero):
                await postgres.run("SELECT 1 / %(zero)s::int", {"zero": 0})
            done += 1

    async with Postgres.open(url) as one, Postgres.open(url) as other:
        async with anyio.create_task_group() as group:
            for postgres in (one, other) * 4:
                group.start_soon(work, postgres)
        assert done == 160
        assert await one.run("SELECT count(*) FROM pg_prepared_statements") == [(0,)]
        server.query(CUT_OTHERS)
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(one.run, WRITE)
        await other.run(WRITE)
        assert one.breaker.opened == 0
