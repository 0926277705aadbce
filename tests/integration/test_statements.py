"""Every statement, as PostgreSQL reads and plans it with the statistics of an empty database.

On a launch day plans are made before autovacuum has looked at the tables, and kept while they grow.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest

from service import postgres
from service.postgres.connection import configure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.postgres import PostgresServer

OPERATORS_QUERIES: Final = sorted(Path("ops/sql").glob("*.sql"))
SIZES: Final = {"none": 0, "few": 20, "many": 20_000}
VERBS: Final = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")
PARTS: Final = {"accounts.FIND", "mails.HELD", "mail_admin.MAILS"}  # of statements, and none themselves
SETTERS: Final = {"pool", "migrations"}  # connections and schemas; the tests of those run them
PARAMETER: Final = re.compile(r"%\((\w+)\)s")
GROWING: Final = {"accounts", "mails", "answers"}
PARTIAL: Final = {"mails_due", "mails_failing", "mails_dead"}  # as small as what they are about
NEWEST: Final = {"mail_admin.NEWEST"}  # reads the newest rows, by the primary key from its end
ACCOUNTS: Final = """
INSERT INTO vestibule.accounts (id, email_key, email, password_hash, locale)
SELECT gen_random_uuid(), i || '@example.com', i || '@example.com', '', 'en' FROM generate_series(1, %(accounts)s) AS i
"""
MAILS: Final = """
INSERT INTO vestibule.mails (id, account_id, registration, number, kind, state, accepted_at, expires_at, key_id)
SELECT gen_random_uuid(), id, 1, 1, 'code', 'accepted', now() - interval '1 day', now(), 'k1' FROM vestibule.accounts
"""
ANSWERS: Final = """
INSERT INTO vestibule.answers (digest, body_digest, account_id, registration)
SELECT sha256(email::bytea), '', id, 1 FROM vestibule.accounts
"""


def statements() -> Iterator[tuple[str, str]]:
    """Find the constants that are statements, by module and name."""
    names = [found.name for found in iter_modules(postgres.__path__) if found.name not in SETTERS]
    modules = {name: import_module(f"service.postgres.{name}") for name in names}
    modules["health"] = import_module("service.telemetry.health")
    for module, found in modules.items():
        for name, value in vars(found).items():
            if isinstance(value, str) and value.split(maxsplit=1)[:1] in ([verb] for verb in VERBS):
                yield f"{module}.{name}", value


STATEMENTS: Final = {name: text for name, text in statements() if name not in PARTS}


@pytest.fixture(scope="module")
def databases(postgres_server: PostgresServer) -> Iterator[dict[str, psycopg.Connection]]:
    """Connect to databases without a row, with a few that are known from statistics, and with many that are not."""
    with ExitStack() as stack:
        connections: dict[str, psycopg.Connection] = {}
        for size, accounts in SIZES.items():
            name = postgres_server.clone()
            stack.callback(postgres_server.drop, name)
            connection = stack.enter_context(psycopg.connect(postgres_server.url_of(name), autocommit=True))
            connections[size] = connection
            configure(connection)
            connection.execute(ACCOUNTS, {"accounts": accounts})
            connection.execute(MAILS)
            connection.execute(ANSWERS)
        connections["few"].execute("VACUUM ANALYZE")
        yield connections


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_is_valid_and_finds_its_rows_by_an_index(
    name: str, size: str, databases: dict[str, psycopg.Connection]
) -> None:
    """What is quick among a hundred accounts is quick among millions, whenever its plan was made."""
    names = list(dict.fromkeys(PARAMETER.findall(STATEMENTS[name])))
    numbered = PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}", STATEMENTS[name])
    [(plan,)] = databases[size].execute(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {numbered}".encode()).fetchall()
    read = [step for step in steps(plan[0]["Plan"]) if reads_all(step)]
    assert read == [] or name in NEWEST


def steps(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Walk a plan."""
    yield plan
    for step in plan.get("Plans", ()):
        yield from steps(step)


def reads_all(step: dict[str, Any]) -> bool:
    """Return whether a step of a plan reads a table that grows, or an index of it, from end to end."""
    if "Index Name" in step:
        of_ours = step["Index Name"].startswith(tuple(GROWING))
        return of_ours and step["Index Name"] not in PARTIAL and "Index Cond" not in step
    return step["Node Type"] == "Seq Scan" and step.get("Relation Name") in GROWING


@pytest.mark.parametrize("query", OPERATORS_QUERIES, ids=lambda path: path.stem)
def test_an_operators_query_runs(query: Path, databases: dict[str, psycopg.Connection]) -> None:
    """Each of them answers something on a database in use, and says first what it answers."""
    text = query.read_text(encoding="utf-8")
    assert text.startswith("-- ")
    assert databases["many"].execute(text.encode()).description is not None
