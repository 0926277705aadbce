"""`serve` and `worker` started while a server is away: they start, say so, and take up their work when it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from service.postgres.migrations import migrate
from tests.compat.databases import make
from tests.compat.poolers import BINARIES, Pooler
from tests.compat.setups import ready
from tests.compat.walk import command, walk
from tests.faults.clients import Clients, new
from tests.servers.proxy import Proxy
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from tests.compat.databases import Servers
    from tests.compat.setups import Setup
    from tests.servers.valkey import ValkeyServer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("silent", [False, True], ids=["Redis refuses connections", "Redis does not answer"])
def test_redis_away(silent: bool, servers: Servers, row: Setup, valkey_server: ValkeyServer) -> None:  # noqa: FBT001 - a parameter of the table
    """The whole walk works without it."""
    row.urls["DATABASE_URL"] = servers.migrated().url
    with Proxy(valkey_server.socket) as proxy:
        row.urls["REDIS_URL"] = f"redis://127.0.0.1:{proxy.port}/0"
        proxy.hold() if silent else proxy.refuse()
        row.works_apart("Redis is away")


@pytest.mark.parametrize("silent", [False, True], ids=["PostgreSQL refuses connections", "PostgreSQL does not answer"])
def test_postgres_away(silent: bool, servers: Servers, row: Setup) -> None:  # noqa: FBT001 - a parameter
    """It lives and is not ready until the database comes; then the whole walk works."""
    database = servers.migrated()
    with Proxy(database.server.socket) as proxy:
        row.urls["DATABASE_URL"] = database.reached_at(host=f"127.0.0.1:{proxy.port}")
        proxy.hold() if silent else proxy.refuse()
        with row.apart() as log:
            clients = Clients(row.port)
            wait_for(lambda: clients.ask("GET", "/livez").status == 200, "it lives", 30.0)
            assert clients.ask("GET", "/readyz").status == 503
            wait_for(lambda: "the mail queue does not answer" in log(), "the mail worker waits")
            proxy.flow(forget=True) if silent else proxy.accept()
            wait_for(lambda: ready(row.port), "it is ready")
            walk(row.port, row.settings, row.smtp)
        row.ends(log(), "database does not answer|mail queue does not answer|cannot reach the database")


@pytest.mark.parametrize("version", BINARIES, ids=[f"PostgreSQL behind PgBouncer {version}" for version in BINARIES])
def test_postgres_away_behind_a_pooler(version: str, servers: Servers, row: Setup) -> None:
    """A pooler takes log-ins while its server is away: that is an outage too."""
    folder = row.folder / "pgbouncer"
    folder.mkdir()
    with servers.own("18") as server:
        database = make(server)
        migrate(database.url)
        with Pooler(database, folder, version, "transaction") as pooler:
            row.urls["DATABASE_URL"] = pooler.url
            server.stop()
            with row.apart() as log:
                wait_for(lambda: "the database does not answer" in log(), "it starts and says so", 30.0)
                server.start()
                wait_for(lambda: ready(row.port), "it is ready")
                walk(row.port, row.settings, row.smtp)
            row.ends(log(), "database does not answer|mail queue does not answer")


def test_mail_server_away(servers: Servers, row: Setup) -> None:
    """Registrations are taken, and mailed when it comes."""
    row.urls["DATABASE_URL"] = servers.migrated().url
    row.smtp.refuse()
    with row.apart() as log:
        wait_for(lambda: ready(row.port), "it is ready", 30.0)
        clients = Clients(row.port)
        status = clients.register(new()).body["status_url"]
        wait_for(lambda: "mail server unavailable" in log(), "it says so")
        row.smtp.accept()
        wait_for(lambda: clients.ask("GET", status).body["state"] == "accepted", "the first mail leaves", 60.0)
        walk(row.port, row.settings, row.smtp)
    row.ends(log(), "mail server (still )?unavailable")


AWAY = {
    "DATABASE_URL": ("postgresql://nobody@127.0.0.1:1/none", "DATABASE_URL: .*(refused|cannot be reached)"),
    "REDIS_URL": ("redis://127.0.0.1:1/0", "REDIS_URL: .*cannot be reached"),
    "MAIL_URL": ("smtp://127.0.0.1:1", "MAIL_URL: .*refused"),
}


@pytest.mark.parametrize("name", AWAY, ids=[f"up with {name} away" for name in AWAY])
def test_up_refuses_what_it_cannot_reach(name: str, servers: Servers, row: Setup) -> None:
    """`up` is for one machine, where a server that is away is a mistake."""
    row.urls["DATABASE_URL"] = servers.migrated().url
    row.urls[name], says = AWAY[name]
    row.refused(says, "up")
    checked = command(row.settings, "check")
    assert checked.returncode == 1, checked.stdout
