"""A connection to PostgreSQL that depends on nothing outside.

After connecting it sets everything that the statements rely on, and it uses no start-up `options`, which poolers
refuse. Behind a pooler (PgBouncer in transaction mode) a session is not ours to keep: there each statement travels with
its settings in a transaction of its own, and nothing is prepared.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, LiteralString

import psycopg

if TYPE_CHECKING:
    from typing import TypeAlias

    Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

CONNECT_SECONDS: Final = 2  # the shortest that libpq knows
GOING: Final = "57P"  # SQLSTATE: the server goes down or comes up
CONNECTION: Final[dict[str, Any]] = {
    "autocommit": True,  # a statement is a transaction
    "connect_timeout": CONNECT_SECONDS,
    "application_name": "vestibule",
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}

# What the statements rely on, whatever the database's or the role's defaults are. PgBouncer keeps the first ones for
# each of its clients; the others it would hand to another one. None may return an interval: how it is written is told
# at the log-in only, and a pooler tells what the database has by default.
SET_TRACKED: Final = """
SET client_encoding = 'UTF8'; SET DateStyle = 'ISO, MDY'; SET TimeZone = 'UTC'; SET standard_conforming_strings = on
"""
SETTINGS: Final = (
    "SET {0} lock_timeout = '1200ms'",  # longer than the server takes to see a deadlock (1 s), which it ends itself
    "SET {0} statement_timeout = '1500ms'",
    "SET {0} search_path = pg_catalog",  # no function or operator of other programs stands before the server's own
    "SET {0} extra_float_digits = 1",
    "SET {0} array_nulls = on",  # NULL in a list is no word
    "SET {0} jit = off",  # compiling takes longer than any statement
)
VERSION_17: Final = 170000
SINCE_17: Final = ("SET {0} transaction_timeout = 0",)
# A plan is made once for each statement, and finds its rows by an index even if the tables are small when it is made.
SET_SESSION: Final = """
SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off;
SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off
"""


def first_line(error: psycopg.Error) -> str:
    """Return what the database, or the way to it, says first; no value stands in it, and no password."""
    return (str(error).strip().splitlines() or ["no reason given"])[0]


def configure(connection: Connection) -> None:
    """Set what the statements rely on; behind a pooler only what it keeps for its client."""
    connection.execute(SET_TRACKED)
    if behind_pooler(connection):
        connection.prepare_threshold = None
    else:
        connection.execute("; ".join([SET_SESSION, *settings(connection, "SESSION")]))


def cut(connection: Connection) -> None:
    """Wake the thread that waits on the connection, which is of no use afterwards; from another thread."""
    broken = suppress(OSError, psycopg.OperationalError)  # it may break by itself in the meantime
    with broken, socket.socket(fileno=socket.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


def settings(connection: Connection, scope: LiteralString) -> list[LiteralString]:
    """Return the statements that make SETTINGS hold for a session or a transaction of this server."""
    known = (*SETTINGS, *(SINCE_17 if connection.info.server_version >= VERSION_17 else ()))
    return [one.format(scope) for one in known]


def behind_pooler(connection: Connection) -> bool:
    """Return whether something between us and the server answers with a process id of its own."""
    row = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return row is None or int(row[0]) != connection.info.backend_pid
