"""What the supervisor's short-lived children do: check the settings, try the servers, prepare the database."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio

from actors.domain.mail import Deferred, Rejected
from service.embedded.servers import URLS, announce, embedded, gather, plain, resolve
from service.mail.transport import open_transport
from service.postgres.migrations import MigrationError, migrate, pending
from service.processes.listener import CannotStart
from service.processes.supervisor import VERSION
from service.redis import client as redis_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from service.embedded.servers import Servers
    from service.settings import Settings

PAGES = {"sign-up page": "/", "API": "/docs", "mails": "/dev/mail", "operations": "/ops", "metrics": "/metrics"}


class Unreachable(CannotStart):
    """A server does not answer: an outage, which `serve` and `worker` start in, and `up` does not."""


def describe(settings: Settings, mode: str, step: str) -> dict[str, Any]:
    """Return the supervisor's plan; raises CannotStart for a mistake that waiting does not repair."""
    if mode != "up":
        servers = resolve(settings)
        with suppress(Unreachable):  # it serves when the database comes
            migrated(servers.database_url)
        with suppress(Unreachable):  # it serves without Redis
            _redis(servers.redis_url)
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
    tries: dict[str, Callable[[str], object]] = {
        "database_url": partial(migrated, missing=True),
        "redis_url": _redis,
        "mail_url": partial(_mail, settings, None),
    }
    for name in URLS:
        if url := plain(getattr(settings, name)):
            tries[name](url)


def migrated(database_url: str, *, missing: bool = False) -> None:
    """Return if the database is at this version; raises CannotStart with what to do, Unreachable for an outage.

    With `missing` migrations may be missing.
    """
    with _explained():
        lacking = pending(database_url)
    if lacking and not missing:
        raise CannotStart(f"the database lacks {', '.join(lacking)}: run `vestibule migrate` first")


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


def check(settings: Settings, servers: Servers, send_to: str | None) -> Iterator[tuple[str, str | None]]:
    """Yield each server's name with what is wrong, None for nothing."""
    tries = {
        "database": partial(migrated, servers.database_url),
        "redis": partial(_redis, servers.redis_url),
        "mail server": partial(_mail, settings, send_to, servers.mail_url),
    }
    for name, attempt in tries.items():
        try:
            attempt()
        except CannotStart as refused:
            yield name, re.sub(r"^VESTIBULE_\w+: ", "", str(refused))
        else:
            yield name, None


def _redis(url: str) -> None:
    """Return if Redis can be used; raises CannotStart with what is wrong, Unreachable for an outage."""
    try:
        redis_client.check(url)
    except redis_client.RedisUnavailable as away:
        raise Unreachable(f"VESTIBULE_REDIS_URL: {away}") from None
    except redis_client.RedisRefusal as refused:
        raise CannotStart(f"VESTIBULE_REDIS_URL: Redis refuses: {refused}") from None
    except redis_client.BadRedisUrl as bad:
        raise CannotStart(f"VESTIBULE_REDIS_URL: {bad}") from None


def _mail(settings: Settings, send_to: str | None, url: str) -> None:
    """Return if the mail server can be used; raises CannotStart with what is wrong."""

    async def attempt() -> str | None:
        async with open_transport(settings, url) as transport:
            try:
                await transport.check()
                if send_to is not None:
                    await transport.send_test(send_to, uuid4())
            except (Deferred, Rejected) as refused:
                return str(refused)
        return None

    if fault := anyio.run(attempt):
        raise CannotStart(f"VESTIBULE_MAIL_URL: {fault}")
