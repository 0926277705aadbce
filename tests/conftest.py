"""Real servers for the tests: one PostgreSQL and one Valkey for each test process, both gone with it, however it ends.

`database_url` is a migrated database of the test's own, `redis_url` an empty Redis, `smtp_catcher` a mail server that
can be told to misbehave. Nothing is started before the first test that asks for it.
"""

from __future__ import annotations

import os
import signal
from itertools import count
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis
from psycopg import sql

from service.adapters.postgres_migrations import migrate
from service.embedded.launcher import stop
from service.embedded.postgres import DATABASE, MAINTENANCE, EmbeddedPostgres
from service.embedded.redis import EmbeddedRedis
from service.embedded.spawn import die_with
from tests.scheduling import Workshare
from tests.servers.smtp import SmtpServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xdist.remote import Producer

CONNECTIONS = 300  # races are run 16-way, from several pools at once
NUMBERS = count(1)
CLONE = "CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY"  # 20 ms; the default writes every page to the log first
DROP = "DROP DATABASE {} WITH (FORCE)"


def pytest_configure(config: pytest.Config) -> None:
    """Let a worker of pytest-xdist, and with it its servers, end when the run is killed.

    A run in the background of a script ignores SIGINT, and so would every program that a test starts and interrupts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):
        die_with(os.getppid(), signal.SIGKILL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Workshare:
    """Keep tests together that share running services."""
    return Workshare(config, log)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """Run a PostgreSQL without fsync, whose database `vestibule` is migrated and used as a template only."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("pg"), fast=True, connections=CONNECTIONS)
    pid = server.start()
    server.wait_ready(pid)
    migrate(server.url)
    yield server
    stop(pid, server.stop_signal)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """Run a Valkey."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    pid = server.start()
    server.wait_ready(pid)
    yield server
    stop(pid, server.stop_signal)


@pytest.fixture
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an empty folder whose path is short enough for sockets, whatever the test is called."""
    return tmp_path_factory.mktemp("d")


@pytest.fixture
def database_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """Give a fresh, migrated database; connections that the test leaves open are cut at its end."""
    name = f"test_{next(NUMBERS)}"
    with psycopg.connect(postgres_server.url_of(MAINTENANCE), autocommit=True) as maintenance:
        maintenance.execute(sql.SQL(CLONE).format(sql.Identifier(name), sql.Identifier(DATABASE)))
        yield postgres_server.url_of(name)
        maintenance.execute(sql.SQL(DROP).format(sql.Identifier(name)))


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """Give an empty Redis."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        client.script_flush()
    return redis_server.url


@pytest.fixture
def smtp_catcher() -> Iterator[SmtpServer]:
    """Give a mail server that keeps what it is sent, and that stalls, refuses and fails when it is told to."""
    with SmtpServer() as server:
        yield server
