"""Real servers for the tests: one fixture for each real thing, started when the first test asks for it.

The two servers that tests share are one for each test process. A test that stops, kills or stalls a server takes one of
its own: `own_postgres`, `own_valkey`.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.scheduling import Workshare
from tests.servers.postgres import PostgresServer
from tests.servers.provider import Provider
from tests.servers.smtp import SmtpServer
from tests.servers.valkey import ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xdist.remote import Producer


def pytest_configure() -> None:
    """Let SIGINT work: a run in the background ignores it, and so would every program that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


hypothesis.settings.register_profile("shared", deadline=None)  # machines are: time says nothing about an input
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=10_000)  # `just fuzz` asks for it
hypothesis.settings.load_profile("shared")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Workshare:
    """Keep tests together that share running services."""
    return Workshare(config, log)


@pytest.fixture
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an empty folder whose path is short enough for sockets, whatever the test is called."""
    return tmp_path_factory.mktemp("d")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Run the PostgreSQL that tests share."""
    with PostgresServer(tmp_path_factory.mktemp("pg")) as server:
        yield server


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """Give the URL of a fresh, migrated database; connections that the test leaves open are cut at its end."""
    name = postgres_server.clone()
    yield postgres_server.url_of(name)
    postgres_server.drop(name)


@pytest.fixture
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Run a PostgreSQL of the test's own, with a migrated database at its `url`."""
    with PostgresServer(tmp_path_factory.mktemp("pg")) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """Run the Valkey that tests share."""
    with ValkeyServer(tmp_path_factory.mktemp("vk")) as server:
        yield server


@pytest.fixture
def valkey(valkey_server: ValkeyServer) -> str:
    """Give the URL of an empty Valkey."""
    valkey_server.empty()
    return valkey_server.url


@pytest.fixture
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """Run a Valkey of the test's own."""
    with ValkeyServer(tmp_path_factory.mktemp("vk")) as server:
        yield server


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    """Give a mail server that keeps what it is sent, and that stalls, refuses and fails when it is told to."""
    with SmtpServer() as server:
        yield server


@pytest.fixture
def mail_provider() -> Iterator[Provider]:
    """Give a mail provider's HTTP API that keeps what it is posted and answers as it is told to."""
    with Provider() as provider:
        yield provider
