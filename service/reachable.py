"""Looks once, at the start, whether the servers whose URLs are set are there: a wrong URL is no outage."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
import redis

from service.adapters.postgres_migrations import MigrationError, first_line, pending
from service.listener import CannotStart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PATIENCE_SECONDS = 3
MAIL_PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465, "http": 80, "https": 443}


def look(*, database_url: str | None = None, redis_url: str | None = None, mail_url: str | None = None) -> None:
    """Return if every given server answers; raises CannotStart, one line without password, for one that does not."""
    checks: Iterable[tuple[str, str | None, Callable[[str], None]]] = (
        ("VESTIBULE_DATABASE_URL", database_url, _postgres),
        ("VESTIBULE_REDIS_URL", redis_url, _redis),
        ("VESTIBULE_MAIL_URL", mail_url, _mail),
    )
    for name, url, check in checks:
        if url is None:
            continue
        try:
            check(url)
        except CannotStart as refusal:
            raise CannotStart(f"{name}: {refusal}") from None


def migrated(database_url: str) -> None:
    """Return if the database is at this version; raises CannotStart with what to do."""
    try:
        missing = pending(database_url)
    except MigrationError as error:
        raise CannotStart(f"VESTIBULE_DATABASE_URL: {error}") from None
    if missing:
        raise CannotStart(f"the database lacks {', '.join(missing)}: run `vestibule migrate` first")


def _postgres(url: str) -> None:
    if urlsplit(url).scheme not in {"postgresql", "postgres"}:
        raise CannotStart("must be postgresql://user:password@host:port/name")
    try:
        psycopg.connect(url, connect_timeout=PATIENCE_SECONDS).close()
    except psycopg.OperationalError as error:
        raise CannotStart(f"the server cannot be reached: {first_line(error)}") from None
    except psycopg.Error:
        raise CannotStart("is no valid connection URL") from None


def _redis(url: str) -> None:
    if urlsplit(url).scheme not in {"redis", "rediss", "unix"}:
        raise CannotStart("must be redis://host:port/0 or rediss://…")
    try:
        with redis.Redis.from_url(
            url, socket_timeout=PATIENCE_SECONDS, socket_connect_timeout=PATIENCE_SECONDS, retry=None
        ) as client:
            client.ping()
    except redis.RedisError as error:
        raise CannotStart(f"the server cannot be reached: {error}") from None
    except ValueError:
        raise CannotStart("is no valid URL") from None


def _mail(url: str) -> None:
    parts = urlsplit(url)
    try:
        port = parts.port or MAIL_PORTS[parts.scheme]
        host = parts.hostname or ""
    except (KeyError, ValueError):
        raise CannotStart(f"must be one of {', '.join(f'{scheme}://…' for scheme in MAIL_PORTS)}") from None
    try:
        socket.create_connection((host, port), timeout=PATIENCE_SECONDS).close()
    except OSError as error:
        raise CannotStart(f"{host}:{port} cannot be reached: {error.strerror or error}") from None
    except UnicodeError:  # of the library, for a label that is empty or too long
        raise CannotStart(f"{host} is no host name") from None
