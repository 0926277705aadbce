"""Speaks to a service in bytes, as no client should, and reads what comes back, answer by answer."""

from __future__ import annotations

import json
import socket
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
PASSWORD = "correct horse battery"
PATIENCE = 12.0  # longer than any time-out of the service
REGISTER = b"POST /api/v1/users/register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def error(self) -> str | None:
        """The problem's code, None for a success."""
        if self.headers.get("content-type") != "application/problem+json":
            assert self.status < 400, f"{self.status} is no problem"
            return None
        assert self.headers["x-request-id"]
        problem = json.loads(self.body)
        assert problem["status"] == self.status
        return str(problem["error"])


class Talk:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.file = connection.makefile("rb")

    def say(self, data: bytes) -> None:
        """Send bytes; a service that has hung up meanwhile has said why."""
        try:
            self.connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def hear(self, method: str = "GET") -> Answer:
        """Return the next answer."""
        line = self.file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers: dict[str, str] = {}
        while (one := self.file.readline()) != b"\r\n":
            name, _, value = one.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        length = 0 if method == "HEAD" or line[9:10] == b"1" else int(headers.get("content-length", "0"))
        return Answer(int(line[9:12]), headers, self.file.read(length))

    def ended(self, within: float = PATIENCE) -> float:
        """Return the seconds until the service hung up; fails when it does not, or says something more."""
        began = time.monotonic()
        self.connection.settimeout(within)
        with suppress(ConnectionResetError):
            assert self.file.read(1) == b""
        return time.monotonic() - began


@contextmanager
def talk(port: int, first: bytes = b"", source: str = HOST) -> Iterator[Talk]:
    """Open a connection from an address of this machine and send the first bytes over it."""
    with socket.create_connection((HOST, port), PATIENCE, (source, 0)) as connection:
        one = Talk(connection)
        one.say(first)
        with one.file:  # a connection is closed when its file is, too
            yield one


def ask(port: int, request: bytes, source: str = HOST) -> Answer:
    """Send one request over a connection of its own and return the answer."""
    with talk(port, request, source) as one:
        return one.hear(request[:4].decode("latin-1").strip())


def get(path: str, *headers: str, host: str = "localhost", method: str = "GET") -> bytes:
    """Return a request without a body."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


def register(email: str, *headers: str) -> bytes:
    """Return a registration."""
    body = json.dumps({"email": email, "password": PASSWORD}).encode()
    extra = "".join(f"{header}\r\n" for header in headers).encode()
    return REGISTER + extra + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
