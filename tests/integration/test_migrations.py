"""The migrations: once each, together or not at all, with one line for an operator where they cannot be applied."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from service.postgres.migrations import Migration, MigrationError, migrate, migrations, pending
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import DATABASE, USER, PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = [step.name for step in migrations()]
SECRET = "s%zzcret"  # a password that is no valid part of a URL
DEFAULTS = """
ALTER DATABASE vestibule SET default_transaction_isolation = 'repeatable read';
ALTER DATABASE vestibule SET default_transaction_read_only = on;
ALTER DATABASE vestibule SET search_path = theirs, pg_catalog
"""
# What another program may have: tables of our names, and a function that stands before the server's own.
THEIRS = """
CREATE SCHEMA theirs; CREATE TABLE theirs.accounts (id int); CREATE TABLE theirs.migrations (version int);
CREATE TABLE public.mails (id int); CREATE VIEW public.active_users AS SELECT 1 AS id;
CREATE FUNCTION theirs.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'epoch'::timestamptz $$
"""
THEIR_TABLES = "SELECT count(*) FROM pg_class WHERE relnamespace IN ('theirs'::regnamespace, 'public'::regnamespace)"
DEFAULT_TIMES = "SELECT DISTINCT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE pg_get_expr(adbin, adrelid) ~ 'now'"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Run a PostgreSQL."""
    with PostgresServer(tmp_path_factory.mktemp("pg")) as server:
        yield server


@pytest.fixture
def server(running: PostgresServer) -> PostgresServer:
    """Give it with an empty database."""
    name = sql.Identifier(DATABASE)
    running.maintain(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
    running.maintain(sql.SQL("CREATE DATABASE {}").format(name))
    return running


@pytest.fixture(params=["direct", "pgbouncer"])
def url(
    server: PostgresServer, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[str]:
    """Give the way to the database, straight or through a pooler in transaction mode."""
    if request.param == "direct":
        yield server.url
        return
    with PgBouncer(server, tmp_path_factory.mktemp("pb")) as pooler:
        yield pooler.url_of(DATABASE)


def test_each_migration_is_applied_once_whatever_else_is_there(server: PostgresServer, url: str) -> None:
    """Of eight at once one applies them, under unfriendly defaults; other programs' objects are not touched."""
    server.query(THEIRS)
    server.query(DEFAULTS)
    before = server.query(THEIR_TABLES)
    assert pending(url) == NAMES
    with ThreadPoolExecutor(8) as eight:
        applied = list(eight.map(migrate, [url] * 8))
    assert sorted(applied, key=len) == [[]] * 7 + [NAMES]
    assert pending(url) == []
    assert server.query(THEIR_TABLES) == before
    assert all("theirs" not in expression for (expression,) in server.query(DEFAULT_TIMES))


def test_a_migration_that_was_changed_afterwards_is_refused(server: PostgresServer) -> None:
    """The database is not what its files say: an operator has to look."""
    migrate(server.url)
    first, *others = migrations()
    with pytest.raises(MigrationError, match=f"{first.name} was changed"):
        migrate(server.url, [replace(first, sql="SELECT 1"), *others])


def test_a_migration_that_fails_leaves_nothing_of_the_others(server: PostgresServer) -> None:
    """All of them are one transaction; the error is what the server said."""
    steps = [Migration(1, "good", "CREATE TABLE vestibule.t ()"), Migration(2, "bad", "SELECT 1 / 0")]
    with pytest.raises(MigrationError, match="bad failed: division by zero"):
        migrate(server.url, steps)
    assert server.query("SELECT to_regnamespace('vestibule')") == [(None,)]


def test_a_role_without_create_on_the_database_needs_the_schema_only(server: PostgresServer) -> None:
    """Without the schema it gets one line; once an operator has made it, everything works."""
    server.query("DROP ROLE IF EXISTS weak; CREATE ROLE weak LOGIN")
    weak = server.url.replace(f"{USER}@", "weak@", 1)
    with pytest.raises(MigrationError, match="permission denied for database vestibule"):
        migrate(weak)
    server.query("CREATE SCHEMA vestibule AUTHORIZATION weak")
    assert migrate(weak) == NAMES
    assert (pending(weak), migrate(weak)) == ([], [])
    server.query("DROP OWNED BY weak CASCADE; CREATE SCHEMA vestibule")
    with pytest.raises(MigrationError, match="permission denied for schema vestibule"):
        pending(weak)


@pytest.mark.parametrize("work", [migrate, pending])
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_another_encoding_is_refused_in_one_line(
    running: PostgresServer, work: Callable[[str], object], encoding: str
) -> None:
    """With what to do about it, by the command and at the start."""
    name = sql.Identifier(encoding.lower())
    running.maintain(sql.SQL("DROP DATABASE IF EXISTS {}").format(name))
    running.maintain(
        sql.SQL("CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0").format(name, sql.Literal(encoding))
    )
    with pytest.raises(MigrationError, match=f"encoding is {encoding}: Vestibule needs UTF8") as refused:
        work(running.url_of(encoding.lower()))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("work", [migrate, pending])
@pytest.mark.parametrize(
    ("bad_url", "unreachable"),
    [(f"postgresql://u:{SECRET}@h/d", False), ("postgresql://u:secret@127.0.0.1:1/d", True)],
    ids=["no-url", "no-server"],
)
def test_an_address_without_a_database_is_one_line_without_its_password(
    work: Callable[[str], object], bad_url: str, *, unreachable: bool
) -> None:
    """Neither a URL that is none nor a server that is away shows what stands in the URL; only the latter may come."""
    with pytest.raises(MigrationError) as caught:
        work(bad_url)
    assert "cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.unreachable is unreachable


def test_products_can_rely_on_the_view_and_on_the_key_of_an_address(database: str) -> None:
    """What only IDNA could tell raises; pending accounts do not show."""
    with psycopg.connect(database, autocommit=True) as product:
        key = product.execute("SELECT vestibule.email_key('O''Neil+I@EXAMPLE.org')").fetchall()
        assert key == [("o'neil+i@example.org",)]
        with pytest.raises(psycopg.errors.RaiseException, match="ASCII"):
            product.execute("SELECT vestibule.email_key('ada@münchen.example')")
        product.execute(
            "INSERT INTO vestibule.accounts (id, email_key, email, password_hash, locale, activated_at) VALUES"
            " (gen_random_uuid(), 'a@b', 'A@b', 'h', 'en', now()), (gen_random_uuid(), 'c@d', 'c@d', 'h', 'en', NULL)"
        )
        cursor = product.execute("SELECT * FROM vestibule.active_users")
        columns = ["id", "email", "email_key", "password_hash", "created_at", "activated_at"]
        assert [column.name for column in cursor.description or ()] == columns
        assert [row[1] for row in cursor] == ["A@b"]
