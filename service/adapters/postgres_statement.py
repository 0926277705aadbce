"""One statement under a deadline: how far it came, and how to wake the thread that waits for a silent server."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import LiteralString

    from psycopg import Connection

DEADLINE_SECONDS = 1.5  # the contract answers within 2 s when Postgres is away


class Stalled(Exception):
    """The deadline passed: the server does not answer, or no connection to it could be had."""


class Unusable(Stalled):
    """The server answers, but the database is not ours: not migrated, emptied, read-only."""


class Locked(Exception):
    """Another transaction keeps a lock for too long: nothing was done, and whoever needs other rows is served."""


class Statement:
    """One statement on its way through a thread; `sent` says whether the server may have done it."""

    def __init__(self, sql: LiteralString, parameters: Mapping[str, object] | None = None) -> None:
        self.sql = sql
        self.parameters = parameters
        self.until = monotonic() + DEADLINE_SECONDS
        self.sent = False
        self._given_up = False
        self._connection: Connection[tuple[Any, ...]] | None = None
        self._guard = Lock()

    def left(self) -> float:
        """Return the seconds until the deadline, never negative."""
        return max(0.0, self.until - monotonic())

    @contextmanager
    def on(self, connection: Connection[tuple[Any, ...]], *, sent: bool = True) -> Iterator[None]:
        """Mark the connection that the body waits for; raises Stalled when nobody waits for the outcome any more.

        A body that fails with the server's own words did nothing; what an earlier one may have done stays open.
        """
        with self._guard:
            if self._given_up:
                raise Stalled
            self._connection = connection
            before, self.sent = self.sent, self.sent or sent
        try:
            yield
        except psycopg.Error as error:
            if error.sqlstate:
                self.sent = before
            raise
        finally:
            with self._guard:
                self._connection = None

    def give_up(self) -> None:
        """Wake the thread that waits for a silent server: its connection is of no use to anyone any more."""
        with self._guard:
            self._given_up = True
            connection = self._connection
            if connection is None or connection.closed:
                return
            try:
                with socket.socket(fileno=socket.dup(connection.fileno())) as wire:
                    wire.shutdown(socket.SHUT_RDWR)
            except (OSError, psycopg.OperationalError):
                return  # it broke by itself in the meantime
