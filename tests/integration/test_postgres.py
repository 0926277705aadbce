"""The way to Postgres through outages of every kind, on a server of the test's own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import psycopg
import pytest

from actors.kit.mailbox import AnswerLost
from actors.ports import StoreUnavailable
from service.adapters.postgres import COUNTED, Postgres
from service.adapters.postgres_migrations import migrate
from service.adapters.postgres_statement import Stalled, Statement
from tests.servers.own_postgres import OwnPostgres
from tests.servers.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

AWAY_SECONDS = 2.0
BACK_SECONDS = 5.0
NAP = "SELECT pg_sleep(0.2)"
ANSWER = "SELECT count(*) FROM users"
WRITE = "INSERT INTO business_counts (day, worker) VALUES ('2026-01-01', 'test') ON CONFLICT DO NOTHING"
CUT_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
)
BUSY = "INSERT INTO business_counts (day, worker) VALUES ('2026-01-02', 'busy')"
TOUCH = "INSERT INTO business_counts (day, worker) VALUES ('2026-01-02', 'busy') ON CONFLICT DO NOTHING"
READ_ONLY = "ALTER DATABASE vestibule SET default_transaction_read_only = on"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnPostgres]:
    """Run a PostgreSQL; a test heals what it hurts."""
    with OwnPostgres(tmp_path_factory.mktemp("d")) as one:
        yield one


@pytest.fixture
def proxy(server: OwnPostgres) -> Iterator[Proxy]:
    """Stand before it."""
    with Proxy(server.socket) as one:
        yield one


@asynccontextmanager
async def opened(proxy: Proxy) -> AsyncIterator[Postgres]:
    """Give the way through the proxy, with as many connections as it may have."""
    async with Postgres.open(f"postgresql://vestibule@127.0.0.1:{proxy.port}/vestibule") as postgres:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(postgres.run, NAP)
        yield postgres


async def refused(postgres: Postgres) -> None:
    """See that a look-up is refused in time."""
    with anyio.fail_after(AWAY_SECONDS), pytest.raises(StoreUnavailable):
        await postgres.run(ANSWER, reading=True)


async def back(postgres: Postgres) -> None:
    """Wait until it works again, and see that it goes on working on every connection."""
    with anyio.fail_after(BACK_SECONDS):
        while postgres.breaker().is_open:  # noqa: ASYNC110 - a breaker rings no bell
            await anyio.sleep(0.01)
    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(postgres.run, ANSWER)


async def test_connections_that_were_cut_fail_no_statement(proxy: Proxy) -> None:
    """All connections are stale at once: each statement finds another one, and the breaker stays closed."""
    async with opened(proxy) as postgres:
        for _ in range(3):
            await anyio.to_thread.run_sync(proxy.cut)
            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(postgres.run, WRITE)
        assert postgres.breaker().opened == 0


async def test_connections_that_the_server_ended_fail_no_statement(server: OwnPostgres, proxy: Proxy) -> None:
    """The same when an administrator ends them."""
    async with opened(proxy) as postgres:
        server.query(CUT_OTHERS)
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(postgres.run, WRITE)
        assert postgres.breaker().opened == 0


async def test_counts_go_on_when_the_pool_is_replaced(proxy: Proxy) -> None:
    """What the pools before have counted stays, so that no counter that is exported ever falls or hides an increase."""
    async with opened(proxy) as postgres:
        before = postgres.statistics()
        for _ in range(3):
            await anyio.to_thread.run_sync(proxy.cut)
            await postgres.run(WRITE)
            after = postgres.statistics()
            assert after["connections_num"] > before["connections_num"] >= 1
            assert all(after[name] >= before[name] for name in COUNTED)
            before = after


async def test_connections_that_nobody_will_ever_answer_are_in_nobodys_way(proxy: Proxy) -> None:
    """A network that forgot every connection of the pool: later statements get new ones."""
    async with opened(proxy) as postgres:
        proxy.hold()
        await refused(postgres)
        await anyio.to_thread.run_sync(lambda: proxy.flow(forget=True))
        await back(postgres)


async def test_a_write_whose_answer_is_lost_says_so(server: OwnPostgres, proxy: Proxy) -> None:
    """A statement that a stopped server holds may be done later; one that comes after it was never sent."""
    async with opened(proxy) as postgres:
        server.stall()
        with anyio.fail_after(AWAY_SECONDS), pytest.raises(AnswerLost):
            await postgres.run(WRITE)
        with anyio.fail_after(0.1), pytest.raises(StoreUnavailable):
            await postgres.run(WRITE)
        server.resume()
        await back(postgres)


async def test_an_emptied_database_is_an_outage_until_it_is_migrated(server: OwnPostgres, proxy: Proxy) -> None:
    """It answers, and is away all the same."""
    async with opened(proxy) as postgres:
        server.wipe()
        await refused(postgres)
        await anyio.sleep(0.5)  # time for some probes, none of which may close it
        assert postgres.breaker().is_open, "a connection alone does not make it ours"
        assert postgres.breaker().reason == "Unusable"
        await anyio.to_thread.run_sync(migrate, server.url)
        await back(postgres)


async def test_a_database_that_only_reads_is_an_outage(server: OwnPostgres, proxy: Proxy) -> None:
    """A standby takes connections and no registration."""
    async with opened(proxy) as postgres:
        with psycopg.connect(server.url, autocommit=True) as operator:
            operator.execute(READ_ONLY)
            proxy.cut()
            await refused(postgres)
            await anyio.sleep(0.5)  # time for some probes, none of which may close it
            assert postgres.breaker().is_open
            operator.execute("SET default_transaction_read_only = off")
            operator.execute("ALTER DATABASE vestibule RESET default_transaction_read_only")
        await back(postgres)


async def test_a_full_disk_is_an_outage(server: OwnPostgres, proxy: Proxy) -> None:
    """What the server could not do was not done."""
    async with opened(proxy) as postgres:
        with pytest.raises(StoreUnavailable):
            await postgres.run("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'disk_full'; END $$")


async def test_a_row_in_somebodys_hands_is_nobody_elses_outage(server: OwnPostgres, proxy: Proxy) -> None:
    """Who waits too long for a lock hears that nothing was done; all others are served meanwhile and after."""
    async with opened(proxy) as postgres:
        with psycopg.connect(server.url) as operator:
            operator.execute(BUSY)
            with pytest.raises(StoreUnavailable):
                await postgres.run(TOUCH)
            await postgres.run(ANSWER)
        assert postgres.breaker().opened == 0


def test_a_refusal_says_nothing_about_the_try_before_it(server: OwnPostgres) -> None:
    """A try whose connection broke may have been done, whatever the server answers to the next one."""
    statement = Statement(WRITE)
    with psycopg.connect(server.url) as connection:
        with pytest.raises(psycopg.errors.LockNotAvailable), statement.on(connection):
            raise psycopg.errors.LockNotAvailable
        assert not statement.sent
        with pytest.raises(psycopg.OperationalError), statement.on(connection):
            raise psycopg.OperationalError
        with pytest.raises(psycopg.errors.LockNotAvailable), statement.on(connection):
            raise psycopg.errors.LockNotAvailable
    assert statement.sent


async def test_a_statement_that_was_given_up_is_never_sent(server: OwnPostgres) -> None:
    """Whoever heard that nothing was done can rely on it, however late the thread comes."""
    statement = Statement(ANSWER)
    statement.give_up()
    with psycopg.connect(server.url) as connection, pytest.raises(Stalled), statement.on(connection):
        pass
    assert not statement.sent
