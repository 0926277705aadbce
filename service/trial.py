"""The trial of a reload, in a process of its own, which finds out whether this code would start with these settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.adapters.postgres_migrations import migrate
from service.commands import api
from service.reachable import migrated
from service.servers import code_keys, resolve

if TYPE_CHECKING:
    from service.settings import Settings


def attempt(settings: Settings, *, migrating: bool) -> None:
    """Import all code, find servers and keys, and bring the database to this version or see that it is.

    Migrations only ever add, so the old code goes on whether the reload follows or not. Raises what a start would.
    """
    servers = resolve(settings)
    api(settings, servers, code_keys(settings))
    if migrating:
        migrate(servers.database_url)
    else:
        migrated(servers.database_url)
