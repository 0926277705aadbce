"""PgBouncer as it is: Debian's 1.18 and the newest that can be had, in every mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.compat.poolers import BINARIES, Pooler

if TYPE_CHECKING:
    from tests.compat.databases import Servers
    from tests.compat.setups import Setup

pytestmark = pytest.mark.slow

MODES = {
    "session mode": ("session", ""),
    "transaction mode": ("transaction", ""),
    "statement mode": ("statement", ""),
    "transaction mode, options ignored": ("transaction", "ignore_startup_parameters = options"),
    "transaction mode, no prepared statements": ("transaction", "max_prepared_statements = 0"),
    "transaction mode, server_reset_query_always": ("transaction", "server_reset_query_always = 1"),
}
NEWER = {"max_prepared_statements"}  # settings that the oldest does not know


def rows() -> list[object]:
    """Return a row for each version and mode."""
    return [
        pytest.param(version, mode, id=f"PgBouncer {version}, {mode}")
        for version in BINARIES
        for mode, (_, more) in MODES.items()
        if version != min(BINARIES) or more.partition(" ")[0] not in NEWER
    ]


@pytest.mark.parametrize(("version", "mode"), rows())
def test_pgbouncer(version: str, mode: str, servers: Servers, row: Setup) -> None:
    """It needs no setting of ours; where a transaction cannot be had, the start says so."""
    pool_mode, more = MODES[mode]
    folder = row.folder / "pgbouncer"
    folder.mkdir()
    with Pooler(servers.database(), folder, version, pool_mode, more) as pooler:
        row.urls["DATABASE_URL"] = pooler.url
        if pool_mode == "statement":
            row.refused("pool_mode", "migrate", "serve", "worker", "up")
        else:
            row.works()


@pytest.mark.parametrize("version", BINARIES, ids=[f"PgBouncer {version}, foreign defaults" for version in BINARIES])
def test_foreign_defaults(version: str, servers: Servers, row: Setup) -> None:
    """The defaults of the database behind it change nothing either."""
    folder = row.folder / "pgbouncer"
    folder.mkdir()
    database = servers.database()
    database.set({"default_transaction_isolation": "serializable", "IntervalStyle": "sql_standard", "jit": "on"})
    database.set({"DateStyle": "German, DMY", "search_path": "nowhere", "statement_timeout": "50ms"})
    with Pooler(database, folder, version, "transaction") as pooler:
        row.urls["DATABASE_URL"] = pooler.url
        row.works()
