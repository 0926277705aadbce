"""The migrations: once each, in order, whoever else tries at the same time, and one line for an operator."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest

from service.adapters.postgres_migrations import Migration, MigrationError, migrate, migrations, pending
from tests.servers.own_postgres import OwnPostgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = [step.name for step in migrations()]
SECRET = "s%zzcret"  # a password that is no valid part of a URL


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnPostgres]:
    """Run a PostgreSQL."""
    with OwnPostgres(tmp_path_factory.mktemp("d")) as server:
        yield server


@pytest.fixture
def server(running: OwnPostgres) -> OwnPostgres:
    """Empty it."""
    running.wipe()
    return running


def test_each_migration_is_applied_once_whoever_else_tries(server: OwnPostgres) -> None:
    """Of eight at the same time one does the work; the others find it done."""
    assert pending(server.url) == NAMES
    with ThreadPoolExecutor(8) as eight:
        applied = list(eight.map(migrate, [server.url] * 8))
    assert max(applied, key=len) == NAMES
    assert sum(map(len, applied)) == len(NAMES)
    assert pending(server.url) == []


def test_a_migration_that_was_changed_afterwards_is_refused(server: OwnPostgres) -> None:
    """The database is not what its files say: an operator has to look."""
    migrate(server.url)
    first, *others = migrations()
    with pytest.raises(MigrationError, match=f"{first.name} was changed"):
        migrate(server.url, [replace(first, sql="SELECT 1"), *others])


def test_a_migration_that_fails_leaves_those_before_it(server: OwnPostgres) -> None:
    """It is undone as a whole, and says what the server said."""
    steps = [Migration(1, "good", "CREATE TABLE t (a int)"), Migration(2, "bad", "DROP TABLE t; SELECT 1 / 0")]
    with pytest.raises(MigrationError, match="bad failed: division by zero"):
        migrate(server.url, steps)
    assert server.query("SELECT name FROM schema_migrations") == [("good",)]
    assert server.query("SELECT count(*) FROM t") == [(0,)]


def test_a_user_without_the_rights_hears_so_in_one_line(server: OwnPostgres) -> None:
    """Since PostgreSQL 15 not everyone may make tables in the public schema."""
    with psycopg.connect(server.url, autocommit=True) as operator:
        operator.execute("CREATE ROLE weak LOGIN; GRANT USAGE ON SCHEMA public TO weak")
    weak = server.url.replace("vestibule@", "weak@", 1)
    with pytest.raises(MigrationError, match="permission denied for schema public"):
        migrate(weak)


@pytest.mark.parametrize("work", [migrate, pending])
@pytest.mark.parametrize("url", [f"postgresql://u:{SECRET}@h/d", "postgresql://u:secret@127.0.0.1:1/d"])
def test_an_address_without_a_database_is_one_line_without_its_password(
    work: Callable[[str], object], url: str
) -> None:
    """Neither a URL that is none nor a server that is away shows what stands in the URL."""
    with pytest.raises(MigrationError) as caught:
        work(url)
    assert "cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
