from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.hostile.raw import LIVEZ, REGISTER, ask, talk

if TYPE_CHECKING:
    from tests.e2e.instance import Instance

CHUNKED = REGISTER + b"Transfer-Encoding: chunked\r\n\r\n"
BAD_CHUNKS = {
    "no number": b"zz\r\n",
    "a negative size": b"-1\r\nx\r\n",
    "a size with a sign": b"+2\r\n{}\r\n0\r\n\r\n",
    "a size with 0x": b"0x2\r\n{}\r\n0\r\n\r\n",
    "a size of 21 digits": b"0" * 20 + b"2\r\n{}\r\n0\r\n\r\n",
    "a bare LF after the size": b"2\n{}\r\n0\r\n\r\n",
    "no line's end after the data": b"2\r\n{}0\r\n\r\n",
    "more than announced": b"2\r\n{}{}\r\n0\r\n\r\n",
    "an extension without an end": b"2;" + b"a" * 70_000,
    "trailers without an end": b"2\r\n{}\r\n0\r\n" + b"X-A: a\r\n" * 10_000,
}
LENGTHS = {
    "both lengths": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "two lengths in one": b"Content-Length: 2, 3\r\n\r\n{}",
    "a negative length": b"Content-Length: -2\r\n\r\n{}",
    "a length with a sign": b"Content-Length: +2\r\n\r\n{}",
    "a length of 5,000 digits": b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
    "another coding": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "a disguised coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
}


def test_a_body_that_does_not_come_is_timed_out(service: Instance) -> None:
    """408 after five seconds; others are served meanwhile, and the connection ends."""
    with talk(service.port, REGISTER + b"Content-Length: 10\r\n\r\n{") as slow:
        assert ask(service.port, LIVEZ).status == 200
        answer = slow.hear()
        assert (answer.status, answer.error) == (408, "RequestTimeout")
        slow.ended()


@pytest.mark.parametrize("chunks", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
def test_broken_chunks_end_the_connection(service: Instance, chunks: bytes) -> None:
    """They are refused, and what follows is not taken for a request."""
    with talk(service.port, CHUNKED + chunks + LIVEZ) as one:
        answer = one.hear()
        assert answer.error in {"MalformedRequest", "HeadersTooLarge", "BodyTooLarge"}
        assert answer.headers["connection"] == "close"
        one.ended()


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_a_length_that_two_servers_may_read_differently_ends_the_connection(service: Instance, lengths: bytes) -> None:
    """Request smuggling (RFC 9112, 11.2): refused, and what follows is not taken for a request."""
    with talk(service.port, REGISTER + lengths + LIVEZ) as one:
        answer = one.hear()
        assert answer.error == "MalformedRequest"
        assert answer.headers["connection"] == "close"
        one.ended()


def test_extensions_and_trailers_are_ignored(service: Instance) -> None:
    """RFC 9112, 7.1: a chunk's extension says nothing, and a trailer is no header."""
    with talk(
        service.port, CHUNKED + b'2;a=b;c="d"\r\n{}\r\n0\r\nHost: evil\r\nContent-Length: 99\r\n\r\n' + LIVEZ
    ) as one:
        assert one.hear().error == "ValidationError"
        assert one.hear().status == 200


@pytest.mark.parametrize(
    "chunk", [b"1\r\n \r\n", b"1;" + b"a" * 500 + b"\r\n \r\n", b"3ff\r\n" + b" " * 1023 + b"\r\n"]
)
def test_an_endless_list_of_chunks_is_too_large(service: Instance, chunk: bytes) -> None:
    """413 once it holds more than 16 KiB, whatever the chunks' sizes."""
    with talk(service.port, CHUNKED + chunk * 20_000) as one:
        answer = one.hear()
        assert (answer.status, answer.error) == (413, "BodyTooLarge")
        one.ended()


@pytest.mark.parametrize("size", [16 * 1024 + 1, 20_000_000])
def test_a_large_body_is_refused_while_it_is_sent(service: Instance, size: int) -> None:
    """The client hears 413 although it sends on."""
    with talk(service.port, REGISTER + b"Content-Length: %d\r\n\r\n" % size + b" " * size) as one:
        assert one.hear().error == "BodyTooLarge"


def test_a_body_that_is_waited_for_is_asked_for(service: Instance) -> None:
    """`Expect: 100-continue` is answered with 100, then with the answer."""
    with talk(service.port, REGISTER + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n") as one:
        assert one.hear().status == 100
        one.say(b"{}" + LIVEZ)
        assert one.hear().error == "ValidationError"
        assert one.hear().status == 200


def test_a_body_that_will_be_refused_is_not_asked_for(service: Instance) -> None:
    """No 100 but 413 for a length over the limit (RFC 9110, 10.1.1)."""
    with talk(service.port, REGISTER + b"Expect: 100-continue\r\nContent-Length: 99999\r\n\r\n") as one:
        assert one.hear().error == "BodyTooLarge"
        one.ended()


def test_another_expectation_is_ignored(service: Instance) -> None:
    """RFC 9110, 10.1.1 leaves it to the server."""
    assert ask(service.port, REGISTER + b"Expect: tea\r\nContent-Length: 2\r\n\r\n{}").error == "ValidationError"


def test_a_body_that_nobody_reads_ends_the_connection(service: Instance) -> None:
    """What is left of it cannot become the next request."""
    smuggled = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n" + LIVEZ
    with talk(service.port, smuggled) as one:
        assert one.hear().error == "NotFound"
        one.ended()


def test_pipelined_requests_are_answered_in_their_order(service: Instance) -> None:
    """One after the other, bodies included; rubbish behind them ends the connection."""
    post = REGISTER + b"Content-Length: 2\r\n\r\n{}"
    with talk(service.port, LIVEZ + post + LIVEZ + post + b"\0\0\0\r\n\r\n") as one:
        heard = [one.hear().status for _ in range(5)]
        assert heard == [200, 422, 200, 422, 400]
        one.ended()


def test_a_thousand_pipelined_requests_starve_nobody(service: Instance) -> None:
    """Whoever comes after them is served before they are."""
    with talk(service.port, LIVEZ * 1000) as crowd:
        assert ask(service.port, LIVEZ).status == 200
        assert {crowd.hear().status for _ in range(1000)} == {200}


@pytest.mark.parametrize("last", [b"GET /livez HTTP/1.0\r\n\r\n", LIVEZ[:-2] + b"Connection: close\r\n\r\n"])
def test_what_follows_the_last_request_cuts_no_answer(service: Instance, last: bytes) -> None:
    """RFC 9112, 9.6: it is ignored, and the answer is whole."""
    for _ in range(20):
        with talk(service.port, last + LIVEZ) as one:
            assert one.hear().body == b'{"status":"ok"}'
            one.ended()
