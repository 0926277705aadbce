from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.hostile.raw import ask, get, talk

if TYPE_CHECKING:
    from tests.e2e.instance import Instance

LINE = b"GET /livez HTTP/1.1\r\n"
HOST_LINE = b"Host: localhost\r\n"
REFUSED = {
    "no request": b"rubbish\r\n\r\n",
    "HTTP/0.9": b"GET /livez\r\n\r\n",
    "HTTP/9.9": b"GET /livez HTTP/9.9\r\n" + HOST_LINE + b"\r\n",
    "no Host": LINE + b"\r\n",
    "two Hosts": LINE + HOST_LINE * 2 + b"\r\n",
    "a Host that is none": LINE + b"Host: a b/c?d\r\n\r\n",
    "a Host with an empty label": LINE + b"Host: a..b\r\n\r\n",
    "a Host with a label of 64": LINE + b"Host: " + b"a" * 64 + b".com\r\n\r\n",
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
    "OPTIONS of the server": b"OPTIONS * HTTP/1.1\r\n" + HOST_LINE + b"\r\n",
    "a target that is no path": b"GET ftp://localhost/livez HTTP/1.1\r\n" + HOST_LINE + b"\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n",
    "HTTP/2 by prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
}
TOO_LARGE = {
    "one header": LINE + HOST_LINE + b"X-A: " + b"a" * 20_000 + b"\r\n\r\n",
    "one header, in one piece of over 64 KiB": LINE + HOST_LINE + b"X-A: " + b"a" * 70_000 + b"\r\n\r\n",
    "one header without an end": LINE + HOST_LINE + b"X-A: " + b"a" * 100_000,
    "headers without an end": LINE + HOST_LINE + b"X-A: a\r\n" * 10_000,
    "101 headers": LINE + b"X-A: a\r\n" * 100 + HOST_LINE + b"\r\n",
    "the path": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST_LINE + b"\r\n",
    "the path, in one piece of over 64 KiB": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST_LINE + b"\r\n",
    "the query": b"GET /livez?" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST_LINE + b"\r\n",
}
STRANGE = [
    "/%00", "/%0aforged%0d%0a", "/%", "/%zz", "/%ff%fe", "/livez/..%2f..%2fetc%2fpasswd", "/static/..%2fapp.py",
    "/static/%00", "/static/" + "a" * 3000, "/problems/%00", "/dev/mail/%00", "/dev/mail/..%2f..",
    "/dev/mail/" + "a" * 3000,
    "/api/v1/users/activation/%00", "/api/v1/users/activation/%e9%ff", "/api/v1/users/activation/" + "a" * 3000,
    "/api/v1/users/activation/" + "A" * 43, "/" + "a" * 15_000,
]  # fmt: skip


@pytest.mark.parametrize("request_bytes", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_request_is_refused_with_a_problem(service: Instance, request_bytes: bytes) -> None:
    """400 with a body like every other problem's."""
    assert (answer := ask(service.port, request_bytes)).error == "MalformedRequest", answer


@pytest.mark.parametrize("request_bytes", TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_a_head_over_the_limit_is_refused_and_the_connection_ends(service: Instance, request_bytes: bytes) -> None:
    """431, however it comes, and nothing more is read."""
    with talk(service.port, request_bytes) as one:
        answer = one.hear()
        assert (answer.status, answer.error) == (431, "HeadersTooLarge")
        assert answer.headers["connection"] == "close"
        one.ended()


def test_a_head_that_does_not_come_to_its_end_is_cut(service: Instance) -> None:
    """Half a head costs the connection after five seconds; others are served meanwhile."""
    with talk(service.port, LINE + b"X-A: ") as slow:
        assert ask(service.port, get("/livez")).status == 200
        slow.say(b"a")
        assert slow.ended() < 10


@pytest.mark.parametrize("path", STRANGE)
def test_a_strange_path_is_nothing_and_forges_no_line(service: Instance, path: str) -> None:
    """404; whatever a path decodes to, each line of the log is one of ours."""
    assert ask(service.port, get(path)).error == "NotFound"
    assert all(line.startswith(('{"time"', "Vestibule", "  ", "Stop")) for line in service.said().splitlines())


def test_a_folded_header_is_one_line(service: Instance) -> None:
    """Obsolete folding becomes a blank (RFC 9112, 5.2): nothing in it can be a header of its own."""
    answer = ask(service.port, LINE + HOST_LINE + b"X-Request-ID: a\r\n X-Request-ID: b\r\n\r\n")
    assert answer.status == 200
    assert answer.headers["x-request-id"] not in {"a", "b"}


def test_the_absolute_form_is_its_path(service: Instance) -> None:
    """RFC 9112, 3.2.2: a server must take it, whoever is named."""
    assert ask(service.port, get("http://other.example.com/livez")).status == 200
    assert ask(service.port, get("http://other.example.com")).status == 200
    assert ask(service.port, get("http://[::1/livez")).error == "MalformedRequest"


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "BREW", "PUT", "G" * 300])
def test_other_methods_are_not_allowed(service: Instance, method: str) -> None:
    """405, and no tunnel is opened for CONNECT."""
    target = "localhost:80" if method == "CONNECT" else "/livez"
    with talk(service.port, get(target, method=method) + get("/livez")) as one:
        assert one.hear().error == "MethodNotAllowed"
        assert one.hear().status == 200


@pytest.mark.parametrize("offer", ["h2c", "websocket", "TLS/1.2, HTTP/2.0", "foo"])
def test_no_offer_to_upgrade_is_taken(service: Instance, offer: str) -> None:
    """RFC 9110, 7.8: a server may ignore it, and answers in HTTP/1.1."""
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    offers = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {offer}", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
    assert ask(service.port, get("/livez", *offers, "Sec-WebSocket-Version: 13", key)).status == 200
