"""What the supervisor's short-lived children do: check the settings, try the servers, prepare the database."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import psycopg

from actors.domain.mail import Deferred, Rejected
from service.embedded.servers import URLS, announce, embedded, gather, plain, resolve
from service.mail.transport import open_transport
from service.postgres.migrations import MigrationError, first_line, migrate, pending
from service.postgres.pool import PROBE, Transaction, configure
from service.processes.listener import CannotStart
from service.processes.supervisor import VERSION
from service.redis import client as redis_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from service.embedded.servers import Servers
    from service.settings import Settings

PATIENCE_SECONDS = 3
NAMES = {"database_url": "database", "redis_url": "redis", "mail_url": "mail server"}
PAGES = {"sign-up page": "/", "API": "/docs", "mails": "/dev/mail", "operations": "/ops", "metrics": "/metrics"}


class Unreachable(CannotStart):
    """A server does not answer: an outage, which `serve` and `worker` start in, and `up` does not."""


def describe(settings: Settings, mode: str, step: str) -> dict[str, Any]:
    """Return the supervisor's plan; raises CannotStart for a mistake that waiting does not repair."""
    if mode != "up":
        with suppress(Unreachable):  # it serves when the database comes
            migrated(resolve(settings).database_url)
    elif step == "start":
        given(settings)
    else:
        bring_up(resolve(settings).database_url)
    return {
        "version": VERSION,
        "bind": None if mode == "worker" else settings.bind,
        "data_dir": str(settings.data_dir.absolute()),
        "grace": settings.grace_seconds,
        "drain": settings.drain_seconds,
        "mail_workers": {"up": settings.mail_workers, "serve": 0, "worker": 1}[mode],
        "servers": [(one.name, int(one.stop_signal)) for one in embedded(settings)] if mode == "up" else [],
        "log_level": settings.log_level,
        "log_format": settings.log_format,
        "guide": guide(settings),
    }


def guide(settings: Settings) -> list[str]:
    """Return what tells a person what there is to open; nobody has to read it."""
    pages = {} if settings.bind.startswith("unix:") else PAGES
    shown = [name for name in pages if settings.mail_url is None or name != "mails"]
    lines = [f"  {name:13}{{address}}{pages[name]}" for name in shown]
    return ["Vestibule runs on {address}", *lines, "Stop it with Ctrl-C."]


def prepare(settings: Settings, running: Mapping[str, str]) -> None:
    """Wait for the embedded servers, whose pids are given, bring the database to this version, announce them all."""
    servers = embedded(settings)
    for server in servers:
        server.wait_ready(int(running[server.name]))
    found = gather(settings, {server.setting: server.url for server in servers})
    bring_up(found.database_url)
    announce(settings, found, os.getppid())


def given(settings: Settings) -> None:
    """Return if every server whose URL is set can be used; raises CannotStart for the first that cannot."""
    urls = {name: url for name in URLS if (url := plain(getattr(settings, name)))}
    for name, fault in faults(settings, urls):
        if fault:
            raise CannotStart(f"VESTIBULE_{name.upper()}: {fault}")


def migrated(database_url: str) -> None:
    """Return if the database is at this version; raises CannotStart with what to do, Unreachable for an outage."""
    with _explained():
        missing = pending(database_url)
    if missing:
        raise CannotStart(f"the database lacks {', '.join(missing)}: run `vestibule migrate` first")


def bring_up(database_url: str) -> list[str]:
    """Bring the database to this version, return what was applied; raises CannotStart with what stands in the way."""
    with _explained():
        return migrate(database_url)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except MigrationError as error:
        kind = Unreachable if error.unreachable else CannotStart
        raise kind(f"VESTIBULE_DATABASE_URL: {error}") from None


def faults(settings: Settings, urls: Mapping[str, str], send_to: str | None = None) -> Iterator[tuple[str, str | None]]:
    """Yield what is wrong with the server at each URL, by the name of its setting; None for nothing."""
    mail = partial(_mail, settings, send_to)
    tries: dict[str, Callable[[str], str | None]] = {"database_url": _postgres, "redis_url": _redis, "mail_url": mail}
    for name, url in urls.items():
        yield name, tries[name](url)


def check(settings: Settings, servers: Servers, send_to: str | None) -> Iterator[tuple[str, str | None]]:
    """Yield each server's name with what is wrong, None for nothing."""
    for name, fault in faults(settings, {name: getattr(servers, name) for name in NAMES}, send_to):
        found = fault
        if name == "database_url" and fault is None:
            try:
                migrated(servers.database_url)
            except CannotStart as refused:
                found = str(refused)
        yield NAMES[name], found


def _postgres(url: str) -> str | None:
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=PATIENCE_SECONDS) as connection:
            configure(connection)
            [[(usable, _)]] = Transaction([(PROBE, None)]).run(connection)
    except psycopg.errors.UndefinedTable:
        return None  # the migrations say so in better words, or make it
    except psycopg.OperationalError as error:
        return f"the server cannot be reached: {first_line(error)}"
    except psycopg.Error as error:
        return f"the database cannot be used: {error.sqlstate or 'is that a connection URL?'}"
    return None if usable else "the database cannot be written to: is it a standby, or is a right missing?"


def _redis(url: str) -> str | None:
    try:
        redis_client.check(url)
    except redis_client.RedisRefusal as refused:
        return f"Redis refuses: {refused}"
    except redis_client.RedisUnavailable:
        return "the server cannot be reached"
    except redis_client.BadRedisUrl as bad:
        return str(bad)
    return None


def _mail(settings: Settings, send_to: str | None, url: str) -> str | None:
    async def attempt() -> str | None:
        async with open_transport(settings, url) as transport:
            try:
                await transport.check()
                if send_to is not None:
                    await transport.send_test(send_to, uuid4())
            except (Deferred, Rejected) as refused:
                return str(refused)
        return None

    return anyio.run(attempt)
