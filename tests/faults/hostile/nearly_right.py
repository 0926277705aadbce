"""Requests as bytes, most of them nearly right, and what a running service answers to each."""

from __future__ import annotations

import json
import socket
from base64 import b64encode
from itertools import count
from typing import Final

from hypothesis import strategies as st

HOST: Final = "127.0.0.1"
NUMBERS: Final = count()
SECONDS: Final = 10.0
# Completes whatever body was announced and is no request, so that the service ends the connection after its answers.
RUBBISH: Final = b"\r\n\r\n" + b"x" * 17_000 + b"\r\n\r\n"
CALLS: Final = [
    "POST /api/v1/users/register", "POST /api/v1/users/register", "POST /api/v1/users/activate",
    "POST /api/v1/users/activate", "POST /api/v1/users/resend", "GET /api/v1/users/activation",
    "GET /api/v1/users/activation/AAAA", "GET /api/v1/users/me", "GET /api/v1/metrics", "GET /metrics",
    "GET /api/v1/health", "GET /readyz", "GET /openapi.json", "GET /docs", "GET /", "GET /problems/not-found",
    "GET /static/style.css", "GET /dev/mail", "GET /dev/mail/x", "GET /ops",
]  # fmt: skip
METHODS: Final = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "BREW", "CONNECT"]
NOISE: Final = ["%00", "%0a", "//", "%ff", "..", "%2f", "\x7f", "'", "{}", "é", "%", "?a=b&c=%ff"]
NAMES: Final = [
    "Authorization", "Content-Type", "Content-Encoding", "Idempotency-Key", "X-Request-ID", "Traceparent", "Origin",
    "Accept", "Accept-Language", "Forwarded", "X-Forwarded-For", "Cookie", "Range", "If-None-Match", "Expect", "TE",
    "Via", "Last-Event-ID", "Sec-Fetch-Site", "Access-Control-Request-Method", "Upgrade",
]  # fmt: skip
VALUES: Final = [
    "", "a", "*/*", "text/html", "application/json", "application/json; charset=utf-16", 'application/json; charset="',
    "gzip", "de-AT,en;q=0.5", "x;q=", "192.0.2.1, 10.0.0.1", 'for="[::1]:9";for=a', "bytes=0-1", '"x"', "*", "null",
    "Basic YTpi", "Bearer x", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "100-continue", "websocket",
    "\xff\xfe", "a" * 300, "%s%n{0}<b>", "\t\t",
]  # fmt: skip
TEXTS: Final = [
    "", "ada@example.com", "a@b.c", "correct horse battery", "000000", "x" * 73, "\0", "\ud800", "é" * 40,
    "<b>{x:>3000}", "en",
]  # fmt: skip
FIELDS: Final = st.sampled_from(["email", "password", "locale", "code", "activation_code", "odd"])
ANYTHING: Final[st.SearchStrategy[object]] = st.sampled_from([*TEXTS, None, 1, -1.5, True, [], {"a": []}, 10**400])
BASIC: Final = st.tuples(st.sampled_from(TEXTS), st.sampled_from(TEXTS)).map(
    lambda pair: ("Authorization", "Basic " + b64encode(":".join(pair).encode(errors="replace")).decode())
)
HEADERS: Final = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)) | BASIC, max_size=3)
BODY: Final = st.one_of(
    st.dictionaries(FIELDS, ANYTHING, max_size=4),
    st.fixed_dictionaries({"email": ANYTHING, "password": ANYTHING}),
    st.fixed_dictionaries({"code": ANYTHING}),
).map(lambda fields: json.dumps(fields).encode())
BREAKS: Final = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 8), st.sampled_from([b"", b"\n", b"\r", b"\0", b" ", b":", b"\xff"])),
    min_size=1,
    max_size=4,
)


SELDOM: Final = st.sampled_from([False] * 5 + [True])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Make a request that a client might send, now and then with another method, path or Host, or broken bytes."""

    def pick(things: list[str], usual: str) -> str:
        return draw(st.sampled_from(things)) if draw(SELDOM) else usual

    method, path = draw(st.sampled_from(CALLS)).split()
    body = draw(BODY) if method == "POST" or draw(SELDOM) else b""
    lines = [("Host", pick(VALUES, "localhost")), ("Content-Length", str(len(body)))]
    lines += [] if draw(SELDOM) else [("Content-Type", "application/json")]
    head = f"{pick(METHODS, method)} {path}{pick(NOISE, '')} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in [*lines, *draw(HEADERS)])
    raw = bytearray(f"{head}\r\n".encode("latin-1", "replace") + body)
    for place, length, other in draw(BREAKS) if draw(SELDOM) else []:
        raw[place : place + length] = other
    return bytes(raw)


def answered(port: int, request: bytes) -> list[int]:
    """Send a request and the rubbish behind it; return the status of each answer until the service hangs up.

    It comes from an address that no request before had, so that no limit is in its way.
    """
    number, received = next(NUMBERS), b""
    source = f"127.{20 + number // 62500 % 100}.{number // 250 % 250}.{1 + number % 250}"
    with socket.create_connection((HOST, port), SECONDS, (source, 0)) as connection:
        connection.settimeout(SECONDS)
        try:
            connection.sendall(request + RUBBISH)
            while more := connection.recv(65536):
                received += more
        except (BrokenPipeError, ConnectionResetError):  # it has hung up and read no further
            pass
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:] if part[:3].isdigit()]
