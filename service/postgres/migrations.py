"""Brings the schema `vestibule` to this version: numbered SQL files, in order, once each."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Final

import psycopg

from service.postgres.pool import configure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import LiteralString

    from service.postgres.pool import Connection

LOCK: Final = 0x5645_5354  # "VEST": one migration at a time on a database
LOCK_SECONDS: Final = 60  # another migration may be at work
CONNECT_SECONDS: Final = 5  # an operator watches the start
# Of this transaction, because a pooler hands a session's settings and locks to others.
SETTINGS: Final = f"""
SET LOCAL lock_timeout = '{LOCK_SECONDS}s'; SET LOCAL statement_timeout = 0; SET LOCAL search_path = pg_catalog
"""
TAKE_LOCK: Final = "SELECT pg_advisory_xact_lock(%s)"
ENCODING: Final = "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()"
SCHEMA: Final = "SELECT to_regnamespace('vestibule') IS NOT NULL"
CREATE_SCHEMA: Final = "CREATE SCHEMA vestibule"
TABLE: Final = "SELECT to_regclass('vestibule.migrations') IS NOT NULL"
CREATE_TABLE: Final = """
CREATE TABLE vestibule.migrations (
    version integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
APPLIED: Final = "SELECT version, checksum FROM vestibule.migrations"
RECORD: Final = "INSERT INTO vestibule.migrations (version, name, checksum) VALUES (%s, %s, %s)"


class MigrationError(Exception):
    """The database cannot be brought to this version; the text is one line for an operator.

    `unreachable` says that it did not answer at all.
    """

    def __init__(self, text: str, *, unreachable: bool = False) -> None:
        super().__init__(text)
        self.unreachable = unreachable


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its number, its name and what it does."""

    version: int
    name: str
    sql: LiteralString

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, to notice a file that was changed after it was applied."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Return the files of this version, in order."""
    entries = sorted(files("service.postgres").joinpath("sql").iterdir(), key=lambda entry: entry.name)
    return [
        Migration(int(entry.name[:4]), entry.name.removesuffix(".sql"), entry.read_text(encoding="utf-8"))
        for entry in entries
        if entry.name.endswith(".sql")
    ]


def migrate(url: str, steps: Sequence[Migration] | None = None) -> list[str]:
    """Bring the database to this version and return the names of what was applied now.

    All steps are one transaction: they are applied together or not at all. Raises MigrationError.
    """
    with _connected(url) as connection, connection.transaction():
        connection.execute(SETTINGS)
        try:
            connection.execute(TAKE_LOCK, [LOCK])
        except psycopg.errors.LockNotAvailable:
            raise MigrationError(f"another migration has held the lock for {LOCK_SECONDS} s") from None
        if connection.execute(SCHEMA).fetchone() != (True,):
            connection.execute(CREATE_SCHEMA)
        if connection.execute(TABLE).fetchone() != (True,):
            connection.execute(CREATE_TABLE)
        return _apply(connection, migrations() if steps is None else steps)


def pending(url: str) -> list[str]:
    """Return the names of the migrations that the database lacks; raises MigrationError."""
    with _connected(url) as connection:
        known = connection.execute(TABLE).fetchone() == (True,)
        done: dict[int, str] = dict(connection.execute(APPLIED).fetchall()) if known else {}
        return [step.name for step in migrations() if step.version not in done]


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    """Connect, and refuse another encoding than UTF-8.

    What the database refuses in the body is a MigrationError too, which never shows the URL.
    """
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_SECONDS) as connection:
            configure(connection)
            # Whatever the defaults are: who waited for the lock must see what the other one has done.
            connection.isolation_level, connection.read_only = psycopg.IsolationLevel.READ_COMMITTED, False
            [(encoding,)] = connection.execute(ENCODING).fetchall()
            if encoding != "UTF8":
                raise MigrationError(
                    f"the database's encoding is {encoding}: Vestibule needs UTF8; create it with "
                    "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
                )
            yield connection
    except psycopg.OperationalError as error:
        raise MigrationError(
            f"cannot reach the database: {first_line(error)}", unreachable=not error.sqlstate
        ) from None
    except psycopg.Error as error:
        reason = first_line(error) if error.sqlstate else "is that a connection URL?"  # libpq's words quote the URL
        raise MigrationError(f"the database cannot be used: {reason}") from None


def _apply(connection: Connection, steps: Sequence[Migration]) -> list[str]:
    done: dict[int, str] = dict(connection.execute(APPLIED).fetchall())
    applied = []
    for step in steps:
        if step.version in done:
            if done[step.version] != step.checksum:
                raise MigrationError(f"migration {step.name} was changed after it had been applied")
            continue
        try:
            connection.execute(step.sql)
            connection.execute(RECORD, [step.version, step.name, step.checksum])
        except psycopg.Error as error:
            raise MigrationError(f"migration {step.name} failed: {first_line(error)}") from None
        applied.append(step.name)
    return applied


def first_line(error: psycopg.Error) -> str:
    """Return what the database, or the way to it, says first."""
    return (str(error).strip().splitlines() or ["no reason given"])[0]
