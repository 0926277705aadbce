"""nginx and HAProxy with the configurations of ops/deploy, and a client that speaks HTTPS through them."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.servers.ports import free_ports
from tests.servers.processes import Server

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.compat.certificates import Certificates

DEPLOY = Path(__file__).parents[2] / "ops" / "deploy"
SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
LOCAL = "127.0.0.1"
PEM, KEY = "/etc/ssl/sign-up.shop.example.pem", "/etc/ssl/sign-up.shop.example.key"
NGINX_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def program(name: str) -> str | None:
    """Return the path of an installed program."""
    return shutil.which(name, path=SEARCHED)


class WebProxy(Server):
    """A proxy with its configuration of ops/deploy before a service at `bind`, whose only changes are its places."""

    name: str
    file: str

    def __init__(
        self, folder: Path, bind: str, certificates: Certificates, changes: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(folder)
        self.port = free_ports()
        self._bind = bind
        self.pem = folder / "proxy.pem"
        self.pem.write_bytes(certificates.certificate.read_bytes() + certificates.key.read_bytes())
        self._changes = dict(changes or {})
        self.probe = "/readyz"

    def start(self) -> None:
        """Start it, as an account that is not the service's."""
        text = (DEPLOY / self.file).read_text(encoding="utf-8")
        for old, new in (self.places() | self._changes).items():
            assert old in text, f"{self.file} has no {old}"
            text = text.replace(old, new)
        (self._folder / "conf").write_text(self.around(text), encoding="utf-8")
        self.run(self.command())

    def ready(self) -> bool:
        """Return whether it answers for the service."""
        with suppress(OSError, http.client.HTTPException):
            return WebClient(self.port).ask("GET", self.probe).status == http.HTTPStatus.OK
        return False

    def places(self) -> dict[str, str]:
        """Return what stands in the file, and what the test has instead."""
        raise NotImplementedError

    def around(self, text: str) -> str:
        """Return the whole configuration."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return how it is started."""
        raise NotImplementedError


class Nginx(WebProxy):
    """Debian's nginx."""

    name, file = "nginx", "nginx.conf"

    def places(self) -> dict[str, str]:
        """Return the places of sockets and certificates."""
        unix = self._bind.startswith("unix:")
        return {
            PEM: str(self.pem),
            KEY: str(self.pem),
            "listen 443": f"listen {LOCAL}:{self.port}",
            "listen [::]:443": f"listen [::1]:{self.port}",
            "    server 127.0.0.1:8000;": f"    server {self._bind};",
            "    # server unix:/run/vestibule/http;": "    # the other one" if unix else "",
        }

    def around(self, text: str) -> str:
        """Return the file inside what /etc/nginx/nginx.conf has around it."""
        temporary = "\n".join(f"{one}_temp_path {self._folder}/{one};" for one in NGINX_TEMPORARY)
        main = f"daemon off;\nuser nobody nogroup;\npid {self._folder}/pid;\nevents {{}}\n"
        return f"{main}http {{\naccess_log off;\n{temporary}\n{text}\n}}\n"

    def command(self) -> list[str]:
        """Return how it is started."""
        return [program("nginx") or "nginx", "-c", str(self._folder / "conf"), "-e", str(self._folder / "error.log")]


class HAProxy(WebProxy):
    """Debian's HAProxy."""

    name, file = "haproxy", "haproxy.cfg"

    def places(self) -> dict[str, str]:
        """Return the places of sockets and certificates."""
        unix = self._bind.startswith("unix:")
        return {
            PEM: str(self.pem),
            "bind :443": f"bind {LOCAL}:{self.port}",
            "bind :::443": f"bind ::1:{self.port}",
            "server one 127.0.0.1:8000": f"server one {self._bind.replace('unix:', 'unix@')}",
            "# server one unix@/run/vestibule/http check inter 2s": "# the other one" if unix else "",
        }

    def around(self, text: str) -> str:
        """Return the file below what Debian's /etc/haproxy/haproxy.cfg has before it."""
        account = "    user nobody\n    group nogroup\n" if os.geteuid() == 0 else ""
        return f"global\n{account}defaults\n    mode http\n{text}"

    def command(self) -> list[str]:
        """Return how it is started."""
        return [program("haproxy") or "haproxy", "-db", "-f", str(self._folder / "conf")]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it came."""

    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes

    def json(self) -> dict[str, Any]:
        """Return the body as an object."""
        value: dict[str, Any] = json.loads(self.body)
        return value


class WebClient:
    """Speaks HTTP/1.1 over TLS to a proxy from one address; a connection for each request, or, `kept`, for all."""

    def __init__(self, port: int, address: str = LOCAL, *, kept: bool = False) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        host = "::1" if ":" in address else LOCAL
        self._connection = http.client.HTTPSConnection(
            host, port, timeout=20, context=context, source_address=(address, 0)
        )
        self._kept = kept

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Iterable[tuple[str, str]] = (),
        *,
        chunked: bool = False,
    ) -> Answer:
        """Ask once; raises what the connection raises."""
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if content else {}
        pieces = iter([content[:9], content[9:]]) if chunked and content else content
        try:
            self._connection.request(method, path, pieces, sent | dict(headers), encode_chunked=chunked)
            got = self._connection.getresponse()
            return Answer(got.status, {name.lower(): value for name, value in got.getheaders()}, got.read())
        finally:
            if not self._kept:
                self._connection.close()


def listens(host: str, port: int) -> bool:
    """Return whether a connection to this address is taken."""
    with suppress(OSError), socket.create_connection((host, port), 2):
        return True
    return False
