"""Requests that no client should send, as bytes: each is refused in the one way that lets nothing be smuggled."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.faults.hostile.raw import LIVEZ, REGISTER, ask, get, talk

if TYPE_CHECKING:
    from tests.e2e.instance import Instance

LINE = b"GET /livez HTTP/1.1\r\n"
HOST_LINE = b"Host: localhost\r\n"
CHUNKED = REGISTER + b"Transfer-Encoding: chunked\r\n\r\n"
RESET = b"\x01\0\0\0\0\0\0\0"  # SO_LINGER: close with a reset
MALFORMED = {
    "no request": b"rubbish\r\n\r\n",
    "an empty line in front": b"\r\n" + LIVEZ,
    "HTTP/0.9": b"GET /livez\r\n\r\n",
    "no Host": LINE + b"\r\n",
    "two Hosts": LINE + HOST_LINE * 2 + b"\r\n",
    "bare LF": b"GET /livez HTTP/1.1\nHost: localhost\n\n",
    "bare LF in one header": LINE + HOST_LINE + b"X-A: a\nX-B: b\r\n\r\n",
    "bare CR in a header": LINE + HOST_LINE + b"X-A: a\rb\r\n\r\n",
    "NUL in a header": LINE + HOST_LINE + b"X-A: a\0b\r\n\r\n",
    "blank before the colon": LINE + HOST_LINE + b"Content-Length : 3\r\n\r\nabc",
    "header without a colon": LINE + HOST_LINE + b"what is this\r\n\r\n",
    "folded first header": LINE + b" folded: yes\r\n" + HOST_LINE + b"\r\n",
    "NUL in the path": b"GET /\0 HTTP/1.1\r\n" + HOST_LINE + b"\r\n",
    "blank in the path": b"GET /a b HTTP/1.1\r\n" + HOST_LINE + b"\r\n",
    "bytes in the path": b"GET /\xff HTTP/1.1\r\n" + HOST_LINE + b"\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n",
    "both lengths": REGISTER + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": REGISTER + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "two lengths in one": REGISTER + b"Content-Length: 2, 3\r\n\r\n{}",
    "a negative length": REGISTER + b"Content-Length: -2\r\n\r\n{}",
    "a length with a sign": REGISTER + b"Content-Length: +2\r\n\r\n{}",
    "a length of 5,000 digits": REGISTER + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
    "another coding": REGISTER + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": REGISTER + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "a disguised coding": REGISTER + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a chunk without a number": CHUNKED + b"zz\r\n",
    "a chunk of a negative size": CHUNKED + b"-1\r\nx\r\n",
    "a chunk's size with a sign": CHUNKED + b"+2\r\n{}\r\n0\r\n\r\n",
    "a chunk's size with 0x": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk's size of 21 digits": CHUNKED + b"0" * 20 + b"2\r\n{}\r\n0\r\n\r\n",
    "a bare LF after a chunk's size": CHUNKED + b"2\n{}\r\n0\r\n\r\n",
    "a chunk without a line's end": CHUNKED + b"2\r\n{}0\r\n\r\n",
    "a chunk longer than announced": CHUNKED + b"2\r\n{}{}\r\n0\r\n\r\n",
}
TOO_LARGE = {
    "a chunk's extension without an end": CHUNKED + b"2;" + b"a" * 70_000,
    "one header": LINE + HOST_LINE + b"X-A: " + b"a" * 20_000 + b"\r\n\r\n",
    "one header, in one piece of over 64 KiB": LINE + HOST_LINE + b"X-A: " + b"a" * 70_000 + b"\r\n\r\n",
    "one header without an end": LINE + HOST_LINE + b"X-A: " + b"a" * 100_000,
    "headers without an end": LINE + HOST_LINE + b"X-A: a\r\n" * 10_000,
    "101 headers": LINE + b"X-A: a\r\n" * 100 + HOST_LINE + b"\r\n",
    "the path": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST_LINE + b"\r\n",
    "the path, in one piece of over 64 KiB": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST_LINE + b"\r\n",
    "trailers without an end": CHUNKED + b"2\r\n{}\r\n0\r\n" + b"X-A: a\r\n" * 10_000,
    "the query": b"GET /livez?" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST_LINE + b"\r\n",
}
TOO_LONG = {
    "a byte over 16 KiB": REGISTER + b"Content-Length: 16385\r\n\r\n" + b" " * 16_385,
    "20 MB, sent on and on": REGISTER + b"Content-Length: 20000000\r\n\r\n" + b" " * 20_000_000,
    "gigabytes, announced only": REGISTER + b"Content-Length: 99999999999\r\n\r\n",
    "one that waits for 100 Continue": REGISTER + b"Expect: 100-continue\r\nContent-Length: 99999\r\n\r\n",
    "chunks of a byte": CHUNKED + b"1\r\n \r\n" * 20_000,
    "chunks of a byte, with extensions": CHUNKED + (b"1;" + b"a" * 500 + b"\r\n \r\n") * 20_000,
    "chunks of 1 KiB": CHUNKED + (b"3ff\r\n" + b" " * 1023 + b"\r\n") * 20_000,
}
ENDED = [
    *(pytest.param(sent, "MalformedRequest", id=name) for name, sent in MALFORMED.items()),
    *(pytest.param(sent, "HeadersTooLarge", id=f"head: {name}") for name, sent in TOO_LARGE.items()),
    *(pytest.param(sent, "BodyTooLarge", id=f"body: {name}") for name, sent in TOO_LONG.items()),
]
LARGE = {"a chunk's extension without an end": "BodyTooLarge", "trailers without an end": "HeadersTooLarge"}
SMALL = b"Content-Length: 2\r\n\r\n{}"
UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
SOCKET = ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
STRANGE = [
    "/%00", "/%0aforged%0d%0a", "/%", "/%zz", "/%ff%fe", "/livez/..%2f..%2fetc%2fpasswd", "/static/..%2fapp.py",
    "/static/%00", "/static/" + "a" * 3000, "/problems/%00", "/dev/mail/%00", "/dev/mail/..%2f..",
    "/dev/mail/" + "a" * 3000,
    "/api/v1/users/activation/%00", "/api/v1/users/activation/%e9%ff", "/api/v1/users/activation/" + "a" * 3000,
    "/api/v1/users/activation/" + "A" * 43, "/" + "a" * 15_000,
]  # fmt: skip
GOES_ON = [
    (b"OPTIONS * HTTP/1.1\r\n" + HOST_LINE + b"\r\n", "MalformedRequest"),
    (b"PRI * HTTP/2.0\r\n\r\n", "MalformedRequest"),
    (b"GET /livez HTTP/9.9\r\n" + HOST_LINE + b"\r\n", "MalformedRequest"),
    *((get("/livez", host=host), "MalformedRequest") for host in ("a b/c?d", "a..b", "a" * 64 + ".com")),
    (get("ftp://localhost/livez"), "MalformedRequest"),
    (get("http://[::1/livez"), "MalformedRequest"),
    (get("http://other.example.com/livez"), None),  # RFC 9112, 3.2.2: whoever is named
    (get("http://other.example.com"), None),
    (get("localhost:80", method="CONNECT"), "MethodNotAllowed"),  # no tunnel is opened
    *((get("/livez", method=method), "MethodNotAllowed") for method in ("TRACE", "BREW", "PUT", "G" * 300)),
    *((get("/livez", *UPGRADE, *SOCKET, f"Upgrade: {to}"), None) for to in ("h2c", "websocket", "TLS/1.2, HTTP/2.0")),
    (CHUNKED + b'2;a=b;c="d"\r\n{}\r\n0\r\nHost: evil\r\nContent-Length: 99\r\n\r\n', "ValidationError"),
    (REGISTER + b"Expect: tea\r\n" + SMALL, "ValidationError"),  # RFC 9110, 10.1.1 leaves it to the server
    *((get(path), "NotFound") for path in STRANGE),
]


@pytest.mark.parametrize(("sent", "error"), ENDED)
def test_what_is_no_request_is_refused_and_ends_the_connection(service: Instance, sent: bytes, error: str) -> None:
    """With a problem, however it comes; what follows is not taken for a request (RFC 9112, 11.2)."""
    with talk(service.port, sent + LIVEZ) as one:
        answer = one.hear()
        assert answer.error == error
        assert answer.headers["connection"] == "close"
        one.ended()


@pytest.mark.parametrize(("sent", "error"), GOES_ON)
def test_an_odd_request_is_answered_and_so_is_the_next(service: Instance, sent: bytes, error: str | None) -> None:
    """In HTTP/1.1, whatever was offered; and each line of the log is one of ours, whatever a path decodes to."""
    with talk(service.port, sent + LIVEZ) as one:
        assert one.hear().error == error
        assert one.hear().body == b'{"status":"ok"}'
    assert all(line.startswith(('{"time"', "Vestibule", "  ", "Stop")) for line in service.said().splitlines())


def test_a_connection_that_is_reset_harms_no_other(service: Instance) -> None:
    """Nor does one that is closed in the middle of a request; the workers stay the same."""
    for sent in [*MALFORMED.values(), *TOO_LARGE.values()]:
        with talk(service.port, sent) as left:
            left.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    for _ in range(5):
        with talk(service.port, REGISTER + b"Content-Length: 100\r\n\r\n{"):
            pass


def test_a_body_that_nobody_reads_ends_the_connection(service: Instance) -> None:
    """What is left of it cannot become the next request."""
    with talk(service.port, get("/nowhere", "Content-Length: 1000", method="POST") + LIVEZ) as one:
        assert one.hear().error == "NotFound"
        one.ended()


def test_what_is_still_sent_after_an_answer_is_taken(service: Instance) -> None:
    """A proxy whose request is cut off would forget the answer (RFC 9112, 9.6); then the connection ends."""
    with talk(service.port, CHUNKED + b"4400\r\n" + b" " * 0x4400 + b"\r\n") as one:
        assert one.hear().error == "BodyTooLarge"
        for _ in range(50):
            one.connection.sendall(b"400\r\n" + b" " * 0x400 + b"\r\n")
        one.connection.sendall(b"0\r\n\r\n" + LIVEZ)
        one.ended()


def test_a_folded_header_is_one_line(service: Instance) -> None:
    """Obsolete folding becomes a blank (RFC 9112, 5.2): nothing in it can be a header of its own."""
    answer = ask(service.port, LINE + HOST_LINE + b"X-Request-ID: a\r\n X-Request-ID: b\r\n\r\n")
    assert answer.status == 200
    assert answer.headers["x-request-id"] not in {"a", "b"}


def test_a_body_that_is_waited_for_is_asked_for(service: Instance) -> None:
    """`Expect: 100-continue` is answered with 100, then with the answer."""
    with talk(service.port, REGISTER + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n") as one:
        assert one.hear().status == 100
        one.say(b"{}" + LIVEZ)
        assert one.hear().error == "ValidationError"
        assert one.hear().status == 200


def test_pipelined_requests_are_answered_in_their_order(service: Instance) -> None:
    """One after the other, bodies included; hundreds of them starve nobody; rubbish ends the connection."""
    with talk(service.port, (LIVEZ + REGISTER + SMALL) * 400 + b"\0\0\0\r\n\r\n") as crowd:
        assert ask(service.port, LIVEZ).status == 200
        assert [crowd.hear().status for _ in range(801)] == [200, 422] * 400 + [400]
        crowd.ended()


@pytest.mark.parametrize("last", [b"GET /livez HTTP/1.0\r\n\r\n", LIVEZ[:-2] + b"Connection: close\r\n\r\n"])
def test_what_follows_the_last_request_cuts_no_answer(service: Instance, last: bytes) -> None:
    """RFC 9112, 9.6: it is ignored, and the answer is whole."""
    for _ in range(20):
        with talk(service.port, last + LIVEZ) as one:
            assert one.hear().body == b'{"status":"ok"}'
            one.ended()
