"""The service behind nginx and HAProxy as ops/deploy configures them, over TCP and over a Unix socket."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tests.compat.certificates import Certificates
from tests.compat.smtp_script import ScriptedServer
from tests.compat.web_proxies import HAProxy, Nginx, WebClient, listens, program
from tests.compat.whole_service import whole_service
from tests.e2e.client import basic
from tests.faults.clients import SECRET, new
from tests.servers.ports import free_ports
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.compat.web_proxies import Answer, WebProxy
    from tests.compat.whole_service import Service
    from tests.servers.postgres import PostgresServer
    from tests.servers.valkey import ValkeyServer

    Record = Callable[[str, object], None]

pytestmark = pytest.mark.slow

TOKEN = "an-operators-token-of-the-tests"
USERS = "/api/v1/users"
LINKS = re.compile(r'(?:src|href|action)="(?!data:)([^"#]+)"')
ADDRESSES = count(20)
CLIENTS, RELOADS = 6, 2
IDLE_SECONDS = 8.0
FRONTS = [
    pytest.param(
        (kind, way),
        id=f"{kind.name}, {way}",
        marks=pytest.mark.skipif(not program(kind.name), reason=f"needs {kind.name}, Debian's package of this name"),
    )
    for kind in (Nginx, HAProxy)
    for way in ("TCP, a path", "Unix socket")
]


@dataclass(frozen=True, slots=True)
class Front:
    """A service behind a proxy; `root` is the path that it lies under."""

    service: Service
    proxy: WebProxy
    mails: ScriptedServer
    root: str

    def client(self, *, kept: bool = False) -> WebClient:
        """Return a client at an address that no other has."""
        return WebClient(self.proxy.port, f"127.0.1.{next(ADDRESSES)}", kept=kept)

    def curl(self, path: str, *arguments: str, content: str | None = None) -> tuple[int, str, str, float]:
        """Ask with curl; return status, HTTP version, body and seconds."""
        url = f"https://127.0.0.1:{self.proxy.port}{self.root}{path}"
        told = "\\n%{http_code} %{http_version} %{time_total}"
        command = ["curl", "-sk", "--interface", f"127.0.1.{next(ADDRESSES)}", "-w", told, *arguments, url]
        ran = subprocess.run(command, input=content, capture_output=True, text=True, check=True, timeout=30)
        body, _, last = ran.stdout.rpartition("\n")
        status, version, seconds = last.split()
        return int(status), version, body, float(seconds)


@pytest.fixture(scope="module", params=FRONTS)
def front(
    request: pytest.FixtureRequest,
    postgres_server: PostgresServer,
    valkey_server: ValkeyServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Front]:
    """Give a service behind the proxy, which runs as another account."""
    kind, way = request.param
    valkey_server.empty()
    database = postgres_server.clone()
    with TemporaryDirectory() as temporary, ScriptedServer() as mails:
        folder = Path(temporary)
        folder.chmod(0o755)
        unix, root = way == "Unix socket", "" if way == "Unix socket" else "/auth"
        bind = f"unix:{folder}/http" if unix else f"127.0.0.1:{free_ports()}"
        proxy = kind(folder, bind, Certificates.made_in(folder))
        settings = {
            "BIND": bind,
            "TRUSTED_PROXIES": "unix" if unix else "127.0.0.1/32",
            "PUBLIC_URL": f"https://127.0.0.1:{proxy.port}{root}",
            "OPS_TOKEN": TOKEN,
            "WORKERS": "2",
            "DATABASE_URL": postgres_server.url_of(database),
            "REDIS_URL": valkey_server.url,
            "MAIL_URL": f"smtp://127.0.0.1:{mails.port}",
        }
        with whole_service(tmp_path_factory.mktemp("s"), settings) as service, proxy:
            yield Front(service, proxy, mails, root)
    postgres_server.drop(database)


def register(client: WebClient, root: str, *headers: tuple[str, str], chunked: bool = False) -> tuple[str, Answer]:
    """Register somebody new."""
    address = f"{new()}@example.com"
    body = {"email": address, "password": SECRET}
    return address, client.ask("POST", f"{root}{USERS}/register", body, headers, chunked=chunked)


def left(answer: Answer) -> int:
    """Return how many registrations the client has left."""
    return int(answer.headers["x-ratelimit-remaining"])


def test_the_walk(front: Front, record_property: Record) -> None:
    """Page, assets, registration, status, activation: each link that is answered works as it stands."""
    client, root = front.client(), front.root
    page = client.ask("GET", f"{root}/", headers=[("Accept", "text/html")])
    assert page.status == 200
    links = LINKS.findall(page.body.decode())
    assert len(links) > 2
    for link in links:
        assert link.startswith(f"{root}/")
        assert client.ask("GET", link).status == 200, link
    card = client.ask("GET", f"{root}/").json()
    assert all(link.startswith(f"{root}/") for link in card["links"].values())
    assert client.ask("GET", f"{root}/openapi.json").json()["servers"] == [{"url": root or "/"}]

    address, answer = register(client, root)
    assert answer.status == 201, answer
    status_url = answer.json()["status_url"]
    assert status_url.startswith(f"{root}{USERS}/activation/")
    assert answer.headers.get("location", status_url) == status_url
    wait_for(lambda: client.ask("GET", status_url).json()["state"] == "accepted", "the mail", 5.0)
    [mail] = front.mails.to(address)
    assert f"https://127.0.0.1:{front.proxy.port}{root}" in mail.text
    allowed = [("Authorization", basic(address, SECRET))]
    wrong = client.ask("POST", f"{root}{USERS}/activate", {"code": "0000"}, allowed)
    assert wrong.status == 422
    done = client.ask("POST", f"{root}{USERS}/activate", {"code": mail.code}, allowed)
    assert done.status == 200, done
    assert client.ask("GET", f"{root}{USERS}/me", headers=allowed).json()["is_activated"] is True
    secret = [("Authorization", f"Bearer {TOKEN}")]
    assert client.ask("GET", f"{root}/api/v1/metrics", headers=secret).status == 200
    assert client.ask("GET", f"{root}/api/v1/metrics").status in {401, 403}
    record_property("outcome", "works: the walk")


@pytest.mark.parametrize(
    "forged",
    [
        [],
        [("X-Forwarded-For", "203.0.113.7")],
        [("X-Forwarded-For", "203.0.113.7, 127.0.0.1")],
        [("Forwarded", "for=203.0.113.7")],
        [("Forwarded", 'for="[2001:db8::7]:4711"'), ("X-Forwarded-For", "203.0.113.7:4711")],
        [("Forwarded", 'for="'), ("X-Forwarded-For", "unknown")],
    ],
    ids=["honest", "X-Forwarded-For", "two hops", "Forwarded", "both", "broken"],
)
def test_limits_count_for_the_client_whatever_it_says(forged: list[tuple[str, str]], front: Front) -> None:
    """Each address has its own five registrations an hour, and no header gives it others."""
    one, other = front.client(), front.client()
    assert [left(register(one, front.root, *forged)[1]) for _ in range(2)] == [4, 3]
    assert left(register(other, front.root, *forged)[1]) == 4


def test_ipv6_clients_count_by_their_network(front: Front, record_property: Record) -> None:
    """The proxy's quoted or bare IPv6 address is read as such: another client's limit, not the proxy's own."""
    before = left(register(WebClient(front.proxy.port, "::1"), front.root)[1])
    register(front.client(), front.root)
    assert left(register(WebClient(front.proxy.port, "::1"), front.root)[1]) == before - 1
    record_property("outcome", "works: IPv6 clients have limits of their own")


def test_the_proxy_is_believed(front: Front, record_property: Record) -> None:
    """Nothing in health says that forwarded headers are ignored."""
    register(front.client(), front.root)
    notes = front.client().ask("GET", f"{front.root}/api/v1/health").json()["notes"]
    assert not any("TRUSTED_PROXIES" in note for note in notes)
    record_property("outcome", "works: its forwarded headers count")


@pytest.mark.skipif(not program("curl"), reason="needs curl")
@pytest.mark.parametrize("version", ["1.1", "2"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["-d", "@-"],
        ["-d", "@-", "-H", "Expect: 100-continue"],
        ["-H", "Transfer-Encoding: chunked", "-d", "@-"],
        ["-X", "POST", "-T", "-"],
    ],
    ids=["plain", "Expect", "chunked", "streamed"],
)
def test_bodies_arrive_however_they_are_sent(version: str, arguments: list[str], front: Front) -> None:
    """With and without an announced length, after 100 Continue, over HTTP/1.1 and HTTP/2 at the proxy.

    nginx of this age says nothing to an `Expect` over HTTP/2: clients send after a second, as RFC 9110 has it.
    """
    body = json.dumps({"email": f"{new()}@example.com", "password": SECRET})
    protocol = "--http2" if version == "2" else "--http1.1"
    header = ["-H", "Content-Type: application/json"]
    status, spoken, said, seconds = front.curl(f"{USERS}/register", protocol, *header, *arguments, content=body)
    assert (status, spoken) == (201, version), said
    unasked = version == "2" and "Expect: 100-continue" in arguments and front.proxy.name == "nginx"
    assert seconds < (2.5 if unasked else 0.9), "curl waits for a second when nothing asks it to go on"


@pytest.mark.skipif(not program("curl"), reason="needs curl")
@pytest.mark.parametrize(
    "arguments",
    [["--http1.1"], ["--http1.1", "-H", "Transfer-Encoding: chunked"], ["--http2"]],
    ids=["too large", "too large, chunked", "too large, HTTP/2"],
)
def test_a_body_that_is_too_large_gets_our_answer(arguments: list[str], front: Front) -> None:
    """The service refuses it unread, and the proxy passes that on instead of a 502 of its own."""
    header = ["-H", "Content-Type: application/json", "-H", "Expect:"]
    told = front.curl(f"{USERS}/register", *arguments, *header, "-d", "@-", content="x" * 300_000)
    assert (told[0], json.loads(told[2])["error"]) == (413, "BodyTooLarge")


def reloaded(front: Front, times: int) -> bool:
    """Return whether the service has reloaded so often."""
    return front.service.said().count('"reloaded"') >= times


def test_no_request_fails_during_reloads(front: Front, record_property: Record) -> None:
    """Clients that keep their connections register without a pause while the service reloads, and again."""
    stop, failures, answered = threading.Event(), list[str](), count()

    def ask() -> None:
        client = front.client(kept=True)
        while not stop.is_set():
            try:
                _, answer = register(client, front.root)
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
                return
            next(answered)
            if answer.status not in {201, 429}:
                failures.append(str(answer))

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    before = front.service.said().count('"reloaded"')
    for number in range(1, RELOADS + 1):
        front.service.process.send_signal(signal.SIGHUP)
        wait_for(partial(reloaded, front, before + number), f"reload {number}", 30.0)
        threading.Event().wait(1.0)  # of load on the new generation
    stop.set()
    for thread in threads:
        thread.join()
    total = next(answered)
    assert failures == []
    assert total > 50
    record_property("outcome", f"works: {total} requests, 0 failed")


# -- without a proxy in between


@pytest.fixture(scope="module")
def dual(
    postgres_server: PostgresServer, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, int]]:
    """Give a service that listens on every address of this machine, and its port."""
    port, database = free_ports(), postgres_server.clone()
    with ScriptedServer() as mails:
        settings = {
            "BIND": f"[::]:{port}",
            "OPS_TOKEN": TOKEN,
            "DATABASE_URL": postgres_server.url_of(database),
            "REDIS_URL": valkey_server.url,
            "MAIL_URL": f"smtp://127.0.0.1:{mails.port}",
        }
        with whole_service(tmp_path_factory.mktemp("s"), settings) as service:
            yield service, port
    postgres_server.drop(database)


def raw(host: str, port: int, request: bytes) -> tuple[int, bytes]:
    """Send bytes; return the status and all that comes until the end."""
    with socket.create_connection((host, port), 10) as connection:
        connection.sendall(request)
        method = request.partition(b" ")[0].decode()
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        return response.status, response.read()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(
    "head",
    [
        "GET /readyz HTTP/1.1|Host: 10.244.1.7:8000|User-Agent: kube-probe/1.31|Accept: */*|Connection: close",
        "GET /livez HTTP/1.1|Host: [fd00:10:244::7]:8000|User-Agent: kube-probe/1.31|Accept: */*|Connection: close",
        "GET /readyz HTTP/1.1|Host: app|User-Agent: ELB-HealthChecker/2.0|Accept-Encoding: gzip, compressed",
        "GET /livez HTTP/1.1|Host: 10.0.0.7|User-Agent: GoogleHC/1.0|Connection: Keep-alive",
        "HEAD /readyz HTTP/1.0",
        "HEAD /readyz HTTP/1.1|Host: ",
    ],
    ids=["Kubernetes", "Kubernetes, IPv6", "AWS", "Google", "HTTP/1.0 without Host", "empty Host"],
)
def test_health_checks_of_platforms_are_answered(host: str, head: str, dual: tuple[Service, int]) -> None:
    """As they are sent, over IPv4 and IPv6 at one dual-stack listener."""
    status, body = raw(host, dual[1], (head + "||").replace("|", "\r\n").encode())
    assert status == 200
    assert body == b"" or not head.startswith("HEAD")


def test_an_idle_connection_is_kept_for_the_proxy(dual: tuple[Service, int]) -> None:
    """Servers often end it after five seconds, and proxies that keep theirs for sixty then see resets."""
    connection = http.client.HTTPConnection("127.0.0.1", dual[1], timeout=10)
    for _ in range(2):
        connection.request("GET", "/livez")
        assert connection.getresponse().read() == b'{"status":"ok"}'
        assert connection.sock is not None, "it was told to close"
        threading.Event().wait(IDLE_SECONDS)
    connection.close()


@pytest.mark.parametrize(
    ("bind", "reached"),
    [("[::]", {"127.0.0.1", "::1"}), ("[::1]", {"::1"}), ("0.0.0.0", {"127.0.0.1"})],  # noqa: S104 - what is tested
)
def test_a_listener_is_reached_where_it_says(
    bind: str, reached: set[str], data_dir: Path, database: str, valkey: str
) -> None:
    """`[::]` is every address of the machine, IPv4 too, whatever the kernel's default is."""
    port = free_ports()
    with ScriptedServer() as mails:
        stores = {"DATABASE_URL": database, "REDIS_URL": valkey, "MAIL_URL": f"smtp://127.0.0.1:{mails.port}"}
        with whole_service(data_dir, stores | {"BIND": f"{bind}:{port}", "OPS_TOKEN": TOKEN}):
            assert {host for host in ("127.0.0.1", "::1") if listens(host, port)} == reached


@pytest.mark.skipif(not program("nginx"), reason="needs nginx")
@pytest.mark.parametrize("slash", ["", "/"], ids=["keeps the path", "takes the path off"])
def test_a_path_may_be_kept_or_taken_off_by_the_proxy(slash: str, data_dir: Path, database: str, valkey: str) -> None:
    """`location /auth/` with `proxy_pass http://vestibule` and `http://vestibule/` both lead to the same links."""
    changes = {
        "location / {": "location /auth/ {",
        "proxy_pass http://vestibule;": f"proxy_pass http://vestibule{slash};",
    }
    with ExitStack() as stack:
        mails = stack.enter_context(ScriptedServer())
        folder = Path(stack.enter_context(TemporaryDirectory()))
        folder.chmod(0o755)
        bind = f"127.0.0.1:{free_ports()}"
        proxy = Nginx(folder, bind, Certificates.made_in(folder), changes)
        settings = {
            "BIND": bind,
            "PUBLIC_URL": f"https://127.0.0.1:{proxy.port}/auth",
            "TRUSTED_PROXIES": "127.0.0.1/32",
            "DATABASE_URL": database,
            "REDIS_URL": valkey,
            "MAIL_URL": f"smtp://127.0.0.1:{mails.port}",
        }
        stack.enter_context(whole_service(data_dir, settings))
        proxy.probe = "/auth/readyz"
        client = WebClient(stack.enter_context(proxy).port)
        page = client.ask("GET", "/auth/", headers=[("Accept", "text/html")])
        assert {client.ask("GET", link).status for link in LINKS.findall(page.body.decode())} == {200}
        _, answer = register(client, "/auth")
        assert client.ask("GET", answer.json()["status_url"]).json()["state"] in {"queued", "sending", "accepted"}
