"""Mail servers as they are: each row is a server under a whole service in which people register and activate."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.compat.certificates import Certificates
from tests.compat.mail_rows import HOLDS, KILLS, TAKES, greylisting, one_a_connection
from tests.compat.smtp_script import HANG_UP, ScriptedServer, usual
from tests.compat.whole_service import whole_service
from tests.servers.ports import free_ports
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.compat.smtp_script import Session
    from tests.compat.whole_service import Service
    from tests.servers.postgres import PostgresServer
    from tests.servers.valkey import ValkeyServer

    Record = Callable[[str, object], None]

pytestmark = pytest.mark.slow

SETTINGS = {"MAIL_EHLO": "app.example.org", "MAIL_FROM": "Läden <no-reply@example.org>"}
DOMAINS, GONE = ("example.com", "example.net"), "gone.example.com"
HELD_SECONDS = 4.0
MOST_TRIES = 8  # of one that tries for all, in that time and what it takes to notice


def context(made: Certificates) -> ssl.SSLContext:
    """Return what a server with this certificate needs."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(made.certificate, made.key)
    return server


class Services:
    """The services that rows share, one for each way to a mail server; they trust `trusted` and not `untrusted`."""

    def __init__(
        self, stack: ExitStack, folders: pytest.TempPathFactory, postgres: PostgresServer, redis: ValkeyServer
    ) -> None:
        self._stack = stack
        self._folders = folders
        self._postgres = postgres
        self._redis = redis
        self._running: dict[str, Service] = {}
        self._ports: dict[object, int] = {}
        self.trusted, self.untrusted = (Certificates.made_in(folders.mktemp("tls")) for _ in range(2))

    def server(self, scheme: str, options: dict[str, object]) -> ScriptedServer:
        """Return the server of a row, at the place where the service of its kind looks for it."""
        kind = (scheme, options.get("host"), "login" in options)
        port = self._ports.setdefault(kind, free_ports())
        tls = {} if scheme == "smtp" else {"context": context(self.trusted), "implicit": scheme == "smtps"}
        return ScriptedServer(**options, **tls, port=port)  # type: ignore[arg-type]  # of many types

    def service(self, scheme: str, server: ScriptedServer) -> Service:
        """Return the running service that sends to this server."""
        user = "".join(f"{quote(text, safe='')}{end}" for text, end in zip(server.login or (), ":@", strict=False))
        host = f"[{server.host}]" if ":" in server.host else server.host
        url = f"{scheme}://{user}{host}:{server.port}"
        if url not in self._running:
            database = self._postgres.clone()
            self._stack.callback(self._postgres.drop, database)
            stores = {
                "DATABASE_URL": self._postgres.url_of(database),
                "REDIS_URL": self._redis.url.replace("db=0", f"db={1 + len(self._running)}"),
            }
            settings = {"MAIL_URL": url, **stores, **SETTINGS}
            one = whole_service(self._folders.mktemp("s"), settings, SSL_CERT_FILE=str(self.trusted.authority))
            self._running[url] = self._stack.enter_context(one)
        return self._running[url]


@pytest.fixture(scope="module")
def services(
    postgres_server: PostgresServer, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Services]:
    """Give the services, each started when the first row needs it."""
    with ExitStack() as stack:
        yield Services(stack, tmp_path_factory, postgres_server, valkey_server)


def accepted(service: Service, people: list[str], promised: float) -> None:
    """Wait until the mails of all of them are accepted, and nothing is left to note."""
    wait_for(lambda: service.states(people) <= {"accepted"}, "all mails have left", promised)
    wait_for(lambda: service.notes() == [], "health has nothing to note", 3.0)


@pytest.mark.parametrize("name", TAKES)
def test_a_server_that_takes_mail_gets_it(name: str, services: Services, record_property: Record) -> None:
    """The whole walk, and a crowd; each mail is pure ASCII, which every server can take."""
    row = TAKES[name]
    with services.server(row.scheme, row.options) as server:
        service = services.service(row.scheme, server)
        server.script = row.script()
        seconds = service.walks(server.codes, row.promised)
        accepted(service, service.registered(row.crowd, *DOMAINS), 2 * row.promised)
        assert all(mail.content.isascii() for mail in server.mails)
        assert all(mail.session.secure == (row.scheme != "smtp") for mail in server.mails)
        assert {session.name for session in server.sessions} - {""} == {"app.example.org"}
    record_property("outcome", f"works: a mail in {seconds:.1f} s")


@pytest.mark.parametrize("name", HOLDS)
def test_a_server_that_refuses_us_holds_mails_up_and_kills_none(
    name: str, services: Services, record_property: Record
) -> None:
    """It is seen at once, in words, with one line; one mail at a time tries, never with less than was asked for."""
    row = HOLDS[name]
    with services.server(row.scheme, row.options) as server:
        service = services.service(row.scheme, server)
        accepted(service, service.registered(), 10.0)
        before, login, mechanisms, tls = len(service.said()), server.login, server.mechanisms, server.context
        server.script = row.script()
        row.change(server)
        if row.untrusted:
            server.context = context(services.untrusted)
        server.cut()
        people = service.registered(6, *DOMAINS)
        seen = wait_for(lambda: any(row.says in note for note in service.notes()), f"health says {row.says}", 5.0)
        tries = len(server.sessions), server.said("AUTH")
        threading.Event().wait(HELD_SECONDS)
        assert service.states(people) <= {"queued", "sending"}
        assert len(server.sessions) - tries[0] <= MOST_TRIES
        assert server.said("AUTH") - tries[1] <= MOST_TRIES
        server.script, server.login, server.mechanisms, server.context = usual, login, mechanisms, tls
        accepted(service, people, 10.0)
        wait_for(lambda: "mail server available again" in service.said()[before:], "the log says that it is over", 3.0)
        log = [line for line in service.said()[before:].splitlines() if '"mail server unavailable' in line]
        assert [row.says in line for line in log] == [True], log
        assert all(mail.session.secure == (row.scheme != "smtp") for mail in server.mails)
    record_property("outcome", f"seen after {seen:.1f} s, mended: {row.says}")


@pytest.mark.parametrize("name", KILLS)
def test_only_what_is_said_about_the_recipient_or_the_mail_kills_it(
    name: str, services: Services, record_property: Record
) -> None:
    """Its state says so, its neighbours leave, and no other try is made."""
    stage, reply = KILLS[name]
    with services.server("smtp", {}) as server:
        service = services.service("smtp", server)

        def script(session: Session, verb: str, _argument: str) -> str | None:
            return reply if verb == stage and session.recipient.endswith(f"@{GONE}") else None

        server.script = script
        people = service.registered(1, GONE)
        accepted(service, service.registered(2, *DOMAINS), 5.0)
        wait_for(lambda: service.states(people) == {"undeliverable"}, "it is dead", 5.0)
        assert server.to(people[0]) == []
    record_property("outcome", f"dead for {reply[:9].strip()}")


def test_greylisting_delays_the_codes_minute(services: Services, record_property: Record) -> None:
    """Until the mail is accepted the code has no minute; then it has a whole one, and others never waited."""
    with services.server("smtp", {}) as server:
        service = services.service("smtp", server)
        accepted(service, service.registered(), 5.0)
        server.script = grey = greylisting(6.0)
        [slow] = service.registered(1, DOMAINS[0])
        wait_for(lambda: any("451 4.7.1" in note for note in service.notes()), "health notes it", 3.0)
        status = service.status(slow)
        assert (status["state"], status["code_expires_in"]) == ("queued", None)
        server.script = lambda session, verb, said: grey(session, verb, said) if session.recipient == slow else None
        accepted_before = time.monotonic()
        wait_for(lambda: service.states(service.registered(1, DOMAINS[1])) == {"accepted"}, "others leave", 5.0)
        assert time.monotonic() - accepted_before < patience(5.0)
        seconds = wait_for(lambda: service.states([slow]) == {"accepted"}, "it is let through", 15.0)
        assert 55 <= service.status(slow)["code_expires_in"] <= 60
        service.activates(slow, server.codes(slow)[0])
    record_property("outcome", f"works: let through after {seconds:.0f} s, with a whole minute")


def test_a_mail_whose_answer_is_lost_is_sent_again_as_it_was(services: Services, record_property: Record) -> None:
    """The server may have it or not: the repeat has the same Message-ID and the same code, and that one counts."""
    with services.server("smtp", {}) as server:
        service = services.service("smtp", server)
        accepted(service, service.registered(), 5.0)
        lost = [HANG_UP] * 2
        server.script = lambda _session, verb, _argument: lost.pop() if verb == "." and lost else None
        [one] = service.registered()
        wait_for(lambda: service.states([one]) == {"accepted"}, "it is accepted", 10.0)
        mails = server.to(one)
        assert len({mail.message["Message-ID"] for mail in mails}) == 1
        assert len(set(server.codes(one))) == 1
        service.activates(one, server.codes(one)[0])
    record_property("outcome", f"works: {len(mails)} mails, one code")


def can_name_hosts() -> bool:
    """Return whether a program can be given an /etc/hosts of its own."""
    tried = subprocess.run(
        ["unshare", "-rm", "mount", "--bind", "/etc/hosts", "/etc/hosts"], check=False, stderr=subprocess.DEVNULL
    )
    return tried.returncode == 0


@contextmanager
def dead(how: str, port: int) -> Iterator[None]:
    """Make ::1 refuse connections at this port, or swallow them: a queue of none that one connection fills."""
    with ExitStack() as stack:
        if how == "silent":
            listener = stack.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6, backlog=0))
            for _ in range(2):
                waiting = stack.enter_context(socket.socket(socket.AF_INET6))
                waiting.settimeout(0)
                waiting.connect_ex(listener.getsockname())
        yield


@pytest.mark.skipif("not can_name_hosts()", reason="needs a mount namespace for an /etc/hosts of its own")
@pytest.mark.parametrize("how", ["refusing", "silent"])
def test_the_second_host_of_a_name_serves_when_the_first_is_dead(
    how: str, database: str, valkey: str, tmp_path: Path, record_property: Record
) -> None:
    """Its address is tried after some seconds, once: the next connection goes to the one that answered."""
    hosts = tmp_path / "hosts"
    hosts.write_text("::1 mail.example.test\n127.0.0.1 mail.example.test localhost\n", encoding="utf-8")
    before = ("unshare", "-rm", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts))
    with ScriptedServer(script=one_a_connection("421 4.7.0 enough")()) as server, dead(how, server.port):
        url = f"smtp://mail.example.test:{server.port}"
        settings = {"DATABASE_URL": database, "REDIS_URL": valkey, "MAIL_URL": url, **SETTINGS}
        with whole_service(tmp_path, settings, before) as service:
            [first, second] = service.registered(2)
            seconds = wait_for(lambda: service.states([first, second]) == {"accepted"}, "mails", 15.0)
            third = service.registered()
            again = wait_for(lambda: service.states(third) == {"accepted"}, "another", 4.0)
    record_property("outcome", f"works: the first mail after {seconds:.1f} s, then {again:.1f} s")
