"""Every statement of the adapters, as PostgreSQL reads and plans it over a table that has grown."""

from __future__ import annotations

import re
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Final

import psycopg
import pytest

from service import adapters
from tests.servers.own_postgres import OwnPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

VERBS: Final = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")
PARTS: Final = {"FIND", "WANTED"}  # of statements, and none themselves
READS_ALL: Final = {"postgres_desk.MAILS"}  # whatever the operator asks for
PARAMETER: Final = re.compile(r"%\((\w+)\)s")
WHOLE: Final = re.compile(r"Seq Scan on (?:users|mails)\b")
PEOPLE: Final = """
INSERT INTO users (id, email_key, email, password_hash, locale, registration_id, registered_at, code_id,
                   code_expires_at, codes_issued)
SELECT gen_random_uuid(), i || '@example.com', i || '@example.com', '', 'en', gen_random_uuid(), now(), 'k.' || i,
       now(), '{}' FROM generate_series(1, 20000) AS i
"""
THEIR_MAILS: Final = """
INSERT INTO mails (id, user_id, code_id, locale, state, accepted_at)
SELECT gen_random_uuid(), id, code_id, 'en', 'accepted', now() - interval '1 day' FROM users
"""


def statements() -> Iterator[tuple[str, str]]:
    """Find the constants that are statements, by module and name."""
    for found in iter_modules(adapters.__path__, "service.adapters."):
        file = found.name.rpartition(".")[2]
        if file.startswith("postgres_") and file != "postgres_migrations":
            for name, value in vars(import_module(found.name)).items():
                if isinstance(value, str) and value.split(maxsplit=1)[:1] in ([verb] for verb in VERBS):
                    yield f"{file}.{name}", value


STATEMENTS: Final = {name: text for name, text in statements() if name.rpartition(".")[2] not in PARTS}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection]:
    """Connect to a database with many accounts and mails."""
    with (
        OwnPostgres(tmp_path_factory.mktemp("d")) as server,
        psycopg.connect(server.url, autocommit=True) as connection,
    ):
        for statement in (PEOPLE, THEIR_MAILS, "ANALYZE"):
            connection.execute(statement)
        yield connection


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_is_valid_and_reads_no_table_of_people_from_end_to_end(
    name: str, grown: psycopg.Connection
) -> None:
    """What is quick among a hundred accounts is quick among millions: it finds its rows by an index."""
    names = list(dict.fromkeys(PARAMETER.findall(STATEMENTS[name])))
    numbered = PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}", STATEMENTS[name])
    plan = "\n".join(line for (line,) in grown.execute(f"EXPLAIN (GENERIC_PLAN) {numbered}".encode()))
    assert name in READS_ALL or not WHOLE.search(plan), plan
