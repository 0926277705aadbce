"""Applies the numbered SQL files in order, once each, whoever else tries at the same time."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from psycopg import Connection

LOCK = 0x5645_5354  # "VEST": one migration at a time on a database
LOCK_SECONDS = 60  # another migration may be at work
CONNECT_SECONDS = 5  # whoever starts the service watches it
LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
APPLIED = "SELECT version, checksum FROM schema_migrations"
RECORD = "INSERT INTO schema_migrations (version, name, checksum) VALUES (%s, %s, %s)"


class MigrationError(Exception):
    """The database cannot be brought to this version; the text is one line for an operator."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its number, its name and what it does."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, to notice a file that was changed after it ran."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Return the files of this version, in order."""
    names = sorted(entry.name for entry in files("service.migrations").iterdir() if entry.name.endswith(".sql"))
    return [Migration(int(name[:4]), name.removesuffix(".sql"), _text(name)) for name in names]


def _text(name: str) -> str:
    return files("service.migrations").joinpath(name).read_text(encoding="utf-8")


def migrate(url: str, steps: Iterable[Migration] | None = None) -> list[str]:
    """Bring the database to this version and return the names of what was applied now.

    Each step is a transaction; a step that fails leaves the ones before it in place. Raises MigrationError.
    """
    with _connected(url) as connection:
        connection.execute("SELECT set_config('lock_timeout', %s, false)", [f"{LOCK_SECONDS}s"])
        try:
            connection.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        except psycopg.errors.LockNotAvailable:
            raise MigrationError(f"another migration has held the lock for {LOCK_SECONDS} s") from None
        connection.execute(LEDGER)
        return list(_apply(connection, list(steps) if steps is not None else migrations()))


def pending(url: str) -> list[str]:
    """Return the names of the migrations that the database lacks; raises MigrationError."""
    with _connected(url) as connection:
        try:
            done = dict(connection.execute(APPLIED).fetchall())
        except psycopg.errors.UndefinedTable:
            done = {}
        return [step.name for step in migrations() if step.version not in done]


@contextmanager
def _connected(url: str) -> Iterator[Connection[tuple[Any, ...]]]:
    """Connect; whatever the database refuses in the body too is a MigrationError, which never shows the URL."""
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_SECONDS) as connection:
            yield connection
    except psycopg.OperationalError as error:
        raise MigrationError(f"cannot reach the database: {first_line(error)}") from None
    except psycopg.Error as error:
        reason = first_line(error) if error.sqlstate else "is that a connection URL?"  # libpq's words quote the URL
        raise MigrationError(f"the database cannot be used: {reason}") from None


def _apply(connection: Connection[tuple[Any, ...]], steps: list[Migration]) -> Iterable[str]:
    done = dict(connection.execute(APPLIED).fetchall())
    for step in steps:
        if step.version in done:
            if done[step.version] != step.checksum:
                raise MigrationError(f"migration {step.name} was changed after it had been applied")
            continue
        try:
            with connection.transaction():
                connection.execute(step.sql)
                connection.execute(RECORD, [step.version, step.name, step.checksum])
        except psycopg.Error as error:
            raise MigrationError(f"migration {step.name} failed: {first_line(error)}") from None
        yield step.name


def first_line(error: psycopg.Error) -> str:
    """Return what the database, or the way to it, says first."""
    return (str(error).strip().splitlines() or ["no reason given"])[0]
