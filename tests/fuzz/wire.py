"""Requests as bytes, half of them nearly right, sent to a running service, and what comes back counted by status."""

from __future__ import annotations

import json
import random
import socket
from base64 import b64encode
from collections import Counter
from typing import Final

HOST: Final = "127.0.0.1"
PATHS: Final = (
    "/api/v1/users/register",
    "/api/v1/users/activate",
    "/api/v1/users/resend",
    "/api/v1/users/activation",
    "/api/v1/users/activation/AAAA",
    "/api/v1/users/me",
    "/api/v1/metrics",
    "/metrics",
    "/api/v1/health",
    "/livez",
    "/readyz",
    "/openapi.json",
    "/docs",
    "/",
    "/problems/not-found",
    "/static/style.css",
    "/dev/mail",
    "/dev/mail/x",
    "/ops",
)
METHODS: Final = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "BREW", "CONNECT")
NAMES: Final = (
    "Authorization",
    "Content-Type",
    "Content-Encoding",
    "Idempotency-Key",
    "X-Request-ID",
    "Traceparent",
    "Origin",
    "Accept",
    "Accept-Language",
    "Forwarded",
    "X-Forwarded-For",
    "Cookie",
    "Range",
    "If-None-Match",
    "Expect",
    "TE",
    "Via",
    "X-Odd",
    "Last-Event-ID",
    "Sec-Fetch-Site",
    "Access-Control-Request-Method",
    "Upgrade",
)
VALUES: Final = (
    "",
    "a",
    "*/*",
    "text/html",
    "application/json",
    "application/json; charset=utf-16",
    'application/json; charset="',
    "gzip",
    "de-AT,en;q=0.5",
    "x;q=",
    "192.0.2.1, 10.0.0.1",
    'for="[::1]:9";for=a',
    "bytes=0-1",
    '"x"',
    "*",
    "null",
    "Basic YTpi",
    "Bearer x",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "100-continue",
    "websocket",
    "\xff\xfe",
    "a" * 300,
    "%s%n{0}<b>",
    "\t\t",
)
TEXTS: Final = (
    "",
    "ada@example.com",
    "a@b.c",
    "correct horse battery",
    "000000",
    "x" * 73,
    "\0",
    "\ud800",
    "é" * 40,
    "<b>{x:>3000}",
    "en",
)


class Wire:
    """Sends over one connection at a time; a broken request gets a connection of its own."""

    def __init__(self, port: int, start: int) -> None:
        self._port = port
        self._chance = random.Random(start)  # noqa: S311 - repeatable, not secret
        self._connection: socket.socket | None = None
        self.statuses: Counter[int] = Counter()

    def send(self, requests: int) -> None:
        """Send so many requests and count their answers; 0 counts those that got none."""
        for _ in range(requests):
            data, head_only = self._request()
            self.statuses[self._ask(data, head_only=head_only)] += 1
        self._drop()

    def _pick(self, things: tuple[str, ...]) -> str:
        return self._chance.choice(things)

    def _request(self) -> tuple[bytes, bool]:
        path = self._pick(PATHS)
        right = "POST" if path.endswith(("register", "activate", "resend")) else "GET"
        method = right if self._chance.random() < 0.8 else self._pick(METHODS)
        if self._chance.random() < 0.3:
            path = self._noise(path)
        if self._chance.random() < 0.2:
            path += "?" + self._noise("a=b&c=%ff")
        lines = [(name, self._pick(VALUES)) for name in self._chance.sample(NAMES, self._chance.randint(0, 4))]
        if self._chance.random() < 0.5:
            pair = f"{self._pick(TEXTS)}:{self._pick(TEXTS)}".encode(errors="replace")
            lines.append(("Authorization", "Basic " + b64encode(pair).decode()))
        body = self._body() if method != "GET" or self._chance.random() < 0.2 else b""
        lines += [("Content-Type", "application/json")] if self._chance.random() < 0.7 else []
        lines += [("Content-Length", str(len(body)))] if body or method == "POST" else []
        lines += [("Host", "localhost" if self._chance.random() < 0.95 else self._pick(VALUES))]
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines) + "\r\n"
        data = head.encode("latin-1", "replace") + body
        return (self._broken(data) if self._chance.random() < 0.15 else data), method == "HEAD"

    def _body(self) -> bytes:
        names = ("email", "password", "locale", "code", "activation_code", "odd")
        fields = {name: self._value() for name in self._chance.sample(names, self._chance.randint(0, 4))}
        raw = json.dumps(fields).encode()
        return self._broken(raw) if self._chance.random() < 0.3 else raw

    def _value(self) -> object:
        return self._chance.choice([self._pick(TEXTS), self._pick(TEXTS), None, 1, -1.5, True, [], {"a": []}, 10**400])

    def _noise(self, text: str) -> str:
        place = self._chance.randint(0, len(text))
        return (
            text[:place]
            + self._pick(("%00", "%0a", "//", "%ff", "..", "%2f", "\x7f", "'", "{}", "é", "%"))
            + text[place:]
        )

    def _broken(self, data: bytes) -> bytes:
        raw = bytearray(data)
        for _ in range(self._chance.randint(1, 4)):
            place = self._chance.randint(0, len(raw))
            match self._chance.randint(0, 2):
                case 0:
                    raw[place:place] = self._chance.randbytes(self._chance.randint(1, 3))
                case 1:
                    del raw[place : place + self._chance.randint(1, 8)]
                case _:
                    raw[place : place + 1] = self._chance.choice([b"\n", b"\r", b"\0", b" ", b":", b"\xff"])
        return bytes(raw)

    def _ask(self, data: bytes, *, head_only: bool) -> int:
        if self._connection is None:
            self._connection = socket.create_connection((HOST, self._port), 10)
            self._connection.settimeout(0.5)
        try:
            self._connection.sendall(data)
            answer = b""
            while b"\r\n\r\n" not in answer or answer.startswith(b"HTTP/1.1 100"):
                answer = answer.partition(b"\r\n\r\n")[2] if answer.startswith(b"HTTP/1.1 100") else answer
                more = self._connection.recv(65536)
                if not more:
                    break
                answer += more
            whole = self._whole(answer, head_only=head_only)
        except OSError:  # no answer within a moment: the request had no end
            answer, whole = b"", False
        if not whole:
            self._drop()
        return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0

    def _whole(self, answer: bytes, *, head_only: bool) -> bool:
        head, _, body = answer.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if b"connection: close" in head.lower() or not lengths or self._connection is None:
            return False
        wanted = 0 if head_only else int(lengths[0].partition(b":")[2])
        while len(body) < wanted and (more := self._connection.recv(65536)):
            body += more
        return len(body) == wanted

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
