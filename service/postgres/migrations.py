"""Brings the schema `vestibule` to this version: numbered SQL files, in order, once each."""

from __future__ import annotations

import hashlib
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from service.postgres.connection import GOING, configure, cut, first_line, settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import LiteralString

    from service.postgres.connection import Connection

NOT_TRUSTED: Final = re.compile("certificate|does not support SSL|SSL error: (?!unexpected eof)")  # before any log-in
# Said to a log-in that may go well later: no room, a pooler without its server, no primary among the hosts.
PASSING: Final = re.compile(
    "too many|connection slots|no more connections|server login|cannot connect to server|query_wait_timeout"
    "|shutting down|session is read-only|hot standby"
)
REMEDIES: Final = {
    "statement pooling mode": "PgBouncer needs pool_mode = transaction or session",
    "permission denied for database": "GRANT CREATE ON DATABASE … to it, or run `vestibule migrate` as an owner",
    "permission denied for schema vestibule": "GRANT USAGE ON SCHEMA vestibule to the role, if it is Vestibule's",
    "during recovery": "it is a standby: name the primary",
    "certificate verify failed": "name the CA by &sslrootcert=",
}
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
# What the role may not do with the tables; their owner may everything.
LACKING: Final = """
SELECT needed || ' on ' || oid::regclass
FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS needed
WHERE relnamespace = to_regnamespace('vestibule') AND relkind = 'r' AND relname <> 'migrations'
    AND NOT has_table_privilege(oid, needed)
ORDER BY 1
"""
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
        connection.execute("; ".join([*settings(connection, "LOCAL"), SETTINGS]))
        try:
            connection.execute(TAKE_LOCK, [LOCK])
        except psycopg.errors.LockNotAvailable:
            raise MigrationError(f"another migration has held the lock for {LOCK_SECONDS} s") from None
        if connection.execute(SCHEMA).fetchone() != (True,):
            connection.execute(CREATE_SCHEMA)
        if connection.execute(TABLE).fetchone() != (True,):
            connection.execute(CREATE_TABLE)
        applied = _apply(connection, migrations() if steps is None else steps)
        _look_for_rights(connection)
        return applied


def pending(url: str) -> list[str]:
    """Return the names of the migrations that the database lacks; raises MigrationError, for missing rights too."""
    with _connected(url) as connection, connection.transaction():
        known = connection.execute(TABLE).fetchone() == (True,)
        done: dict[int, str] = dict(connection.execute(APPLIED).fetchall()) if known else {}
        missing = [step.name for step in migrations() if step.version not in done]
        if not missing:
            _look_for_rights(connection)
        return missing


def _look_for_rights(connection: Connection) -> None:
    lacking = [right for (right,) in connection.execute(LACKING).fetchall()]
    if lacking:
        raise MigrationError(
            f"the role lacks {', '.join(lacking)}: "
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA vestibule to it"
        )


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    """Connect, and refuse another encoding than UTF-8.

    What the database refuses in the body is a MigrationError too, which never shows the URL. A pooler takes log-ins
    while its server is away, so the first statements have a deadline too.
    """
    late = threading.Event()
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_SECONDS) as connection:
            with _deadline(connection, late):
                configure(connection)
                [(encoding,)] = connection.execute(ENCODING).fetchall()
            # Whatever the defaults are: who waited for the lock must see what the other one has done.
            connection.isolation_level, connection.read_only = psycopg.IsolationLevel.READ_COMMITTED, False
            if encoding != "UTF8":
                raise MigrationError(
                    f"the database's encoding is {encoding}: Vestibule needs UTF8; create it with "
                    "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
                )
            yield connection
    except psycopg.OperationalError as error:
        if late.is_set():
            text = f"cannot reach the database: nothing answers within {CONNECT_SECONDS} s"
            raise MigrationError(text, unreachable=True) from None
        away = is_outage(url, error)
        what = "cannot reach the database" if away else "the database cannot be used"
        raise MigrationError(f"{what}: {_words(error)}", unreachable=away) from None
    except psycopg.Error as error:
        reason = _words(error) if error.sqlstate else "is that a connection URL?"  # libpq's words quote the URL
        standby = isinstance(error, psycopg.errors.FeatureNotSupported)
        raise MigrationError(f"the database cannot be used: {reason}", unreachable=standby) from None


@contextmanager
def _deadline(connection: Connection, late: threading.Event) -> Iterator[None]:
    """Cut the connection when the body takes too long, and set the event."""

    def give_up() -> None:
        late.set()
        cut(connection)

    timer = threading.Timer(CONNECT_SECONDS, give_up)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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


def _words(error: psycopg.Error) -> str:
    """Return what the database says first, and what to do about it."""
    line = first_line(error)
    return ": ".join([line, *(remedy for words, remedy in REMEDIES.items() if words in line)])


def is_outage(url: str, error: psycopg.OperationalError) -> bool:
    """Return whether waiting may help a connection that failed.

    libpq tells no SQLSTATE of a log-in that was refused, so the server is asked whether it takes log-ins at all.
    """
    text = str(error)
    if PASSING.search(text):
        return True
    if error.sqlstate or NOT_TRUSTED.search(text):
        return (error.sqlstate or "").startswith(GOING)
    ping = PGconn.ping(make_conninfo(url, connect_timeout=CONNECT_SECONDS).encode())
    return ping in {Ping.REJECT, Ping.NO_RESPONSE}
