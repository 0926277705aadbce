"""Whatever body comes, the answer is a clear problem: the client's own checks hold each to the form of all problems."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.e2e.client import USERS
from tests.e2e.instance import HOST

if TYPE_CHECKING:
    from tests.e2e.conftest import Story

PATH = f"{USERS}/register"
GOOD = {"email": "ada@example.test", "password": "correct horse battery"}
MALFORMED = {
    "nothing": b"",
    "blanks": b" \n ",
    "no JSON": b"email=ada@example.test",
    "half of it": b'{"email": "ada@exa',
    "an array": b'["ada@example.test"]',
    "a string": b'"ada@example.test"',
    "a number": b"42",
    "null": b"null",
    "two objects": b'{"email": "a"} {"email": "b"}',
    "a trailing comma": b'{"email": "ada@example.test",}',
    "single quotes": b"{'email': 'ada@example.test'}",
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "Latin-1": '{"email": "é@example.test"}'.encode("latin-1"),
    "overlong UTF-8": b'{"email": "\xc0\xaf@example.test"}',
    "a raw surrogate": b'{"email": "\xed\xa0\x80@example.test"}',
    "an escaped lone surrogate": b'{"email": "\\ud800@example.test", "password": "correct horse battery"}',
    "a lone surrogate in a name": b'{"\\udfff": 1}',
    "a raw line break in a string": b'{"email": "ada\n@example.test"}',
    "NaN": b'{"email": NaN, "password": "correct horse battery"}',
    "infinity": b'{"email": -Infinity}',
    "a name twice": b'{"email": "ada@example.test", "email": "eve@example.test", "password": "correct horse battery"}',
    "a name twice, escaped": b'{"email": "ada@example.test", "\\u0065mail": "eve@example.test"}',
    "nested arrays": b'{"email": ' + b"[" * 8000 + b"]" * 8000 + b"}",
    "nested objects": b'{"a":' * 2500 + b"1" + b"}" * 2500,
    "a huge number": b'{"email": ' + b"9" * 16000 + b"}",
    "NUL bytes": b"\0" * 100,
}
INVALID = {
    "no fields": {},
    "no password": {"email": "ada@example.test"},
    "an unknown field": {**GOOD, "is_admin": True},
    "a field of ours": {**GOOD, "is_activated": True},
    "a name with a dollar": {**GOOD, "$where": "1"},
    "an empty name": {**GOOD, "": "1"},
    "__proto__": {**GOOD, "__proto__": {}},
    "a number for an address": {**GOOD, "email": 42},
    "null for an address": {**GOOD, "email": None},
    "a list of addresses": {**GOOD, "email": ["ada@example.test"]},
    "an object for an address": {**GOOD, "email": {"$ne": ""}},
    "a number for a password": {**GOOD, "password": 1234567890},
    "true for a password": {**GOOD, "password": True},
    "NUL in the address": {**GOOD, "email": "ada\0@example.test"},
    "a line break in the address": {**GOOD, "email": "ada@example.test\r\nBcc: eve@example.test"},
    "NUL in the password": {**GOOD, "password": "correct\0horse battery"},
    "an escape in the password": {**GOOD, "password": "correct \x1b[2J horse"},
    "DEL in the password": {**GOOD, "password": "correct \x7f horse"},
    "C1 in the password": {**GOOD, "password": "correct \x9b horse"},
    "NUL in the language": {**GOOD, "locale": "en\0"},
    "a path for a language": {**GOOD, "locale": "../../etc/passwd"},
    "a number for a language": {**GOOD, "locale": 1},
    "a language without end": {**GOOD, "locale": "en" + "-abcdefgh" * 500 + "-"},
}
MEDIA = {
    "none": [],
    "a form": [("Content-Type", "application/x-www-form-urlencoded")],
    "a form with a file": [("Content-Type", "multipart/form-data; boundary=x")],
    "text": [("Content-Type", "text/plain")],
    "JSON by another name": [("Content-Type", "application/vnd.api+json")],
    "a prefix": [("Content-Type", "application/jsonp")],
    "two": [("Content-Type", "application/json"), ("Content-Type", "application/json")],
    "UTF-16": [("Content-Type", "application/json; charset=utf-16")],
    "Latin-1": [("Content-Type", "application/json; charset=iso-8859-1")],
    "a charset that is none": [("Content-Type", "application/json; charset=nothing")],
    "gzip": [("Content-Type", "application/json"), ("Content-Encoding", "gzip")],
    "identity and gzip": [("Content-Type", "application/json"), ("Content-Encoding", "identity, gzip")],
}
ACCEPTED_MEDIA = [
    "application/json",
    "Application/JSON",
    'application/json; charset="UTF-8"',
    "application/json;charset=utf8",
]


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_json_object_is_malformed(story: Story, body: bytes) -> None:
    """400 MalformedRequest, wherever the reader stumbles."""
    assert story.place.client().post(PATH, body).outcome == "400 MalformedRequest"


@pytest.mark.parametrize("body", INVALID.values(), ids=INVALID)
def test_wrong_fields_are_named(story: Story, body: dict[str, object]) -> None:
    """422 ValidationError with a sentence for each field, without their values."""
    answer = story.place.client().post(PATH, body)
    assert answer.outcome == "422 ValidationError"
    errors = answer.json()["errors"]
    assert errors
    assert all(error.keys() == {"field", "message"} for error in errors)
    for secret in ("correct horse", "example.test", "etc/passwd"):
        assert secret.encode() not in answer.body


@pytest.mark.parametrize("headers", MEDIA.values(), ids=MEDIA)
def test_other_media_are_refused(story: Story, headers: list[tuple[str, str]]) -> None:
    """415 UnsupportedMediaType."""
    answer = story.place.client().send("POST", PATH, json.dumps(GOOD).encode(), headers)
    assert answer.outcome == "415 UnsupportedMediaType"


@pytest.mark.parametrize("media", ACCEPTED_MEDIA)
def test_every_spelling_of_json_in_utf8_is_read(story: Story, media: str) -> None:
    """Media types and charsets compare without case, quoted or not."""
    person = story.place.person()
    body = json.dumps({"email": person.email, "password": person.password}).encode()
    assert person.client.send("POST", PATH, body, [("Content-Type", media)]).outcome == "201"


def test_a_body_of_16_kib_is_read_and_one_byte_more_is_not(story: Story) -> None:
    """The limit is where the contract says, also when a length of gigabytes is only announced."""
    client = story.place.client()
    person = story.place.person()
    form = json.dumps({"email": person.email, "password": person.password}).encode()
    assert client.post(PATH, form.ljust(16 * 1024)).outcome == "201"
    assert client.post(PATH, form.ljust(16 * 1024 + 1)).outcome == "413 BodyTooLarge"
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert client.raw(f"{head}Content-Length: 99999999999\r\n\r\n".encode()).outcome == "413 BodyTooLarge"
    chunks = (b"2000\r\n" + b" " * 0x2000 + b"\r\n") * 3 + b"0\r\n\r\n"
    assert client.raw(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks).outcome == "413 BodyTooLarge"


def test_a_chunked_body_is_read(story: Story) -> None:
    """A client need not know the length in advance."""
    person = story.place.person()
    form = json.dumps({"email": person.email, "password": person.password}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (form[:10], form[10:])) + b"0\r\n\r\n"
    assert person.client.raw(head.encode() + chunks).outcome == "201"


def test_two_lengths_are_refused(story: Story) -> None:
    """A body that two servers would end at different places reaches no handler."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    answer = story.place.client().raw(f"{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode())
    assert answer.outcome == "400 MalformedRequest"


def test_headers_without_end_are_refused(story: Story) -> None:
    """431 HeadersTooLarge for one long header and for very many."""
    client = story.place.client()
    assert client.send("GET", "/livez", headers=[("X-Long", "a" * 17_000)]).outcome == "431 HeadersTooLarge"
    many = [(f"X-{number}", "a") for number in range(150)]
    assert client.send("GET", "/livez", headers=many).outcome == "431 HeadersTooLarge"


def test_a_slow_body_is_not_waited_for(story: Story) -> None:
    """408 RequestTimeout after seconds, though a byte comes every second, and others are served meanwhile."""
    client = story.place.client()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    with socket.create_connection((HOST, client.instance.port), 20, (client.address, 0)) as slow:
        slow.sendall(head.encode())
        slow.settimeout(1)
        received = b""
        for _ in range(15):
            slow.sendall(b" ")
            assert story.place.client().get("/livez").status == 200
            with suppress(TimeoutError):
                received = slow.recv(65536)
                break
        while more := slow.recv(65536):
            received += more
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"RequestTimeout" in received


def test_a_client_that_leaves_in_the_middle_of_its_body_harms_nobody(story: Story) -> None:
    """Half requests, cut off, cost the service nothing that the next client would notice."""
    client = story.place.client()
    for _ in range(5):
        with socket.create_connection((HOST, client.instance.port), 20, (client.address, 0)) as left:
            left.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        threading.Event().wait(0.01)
        assert client.get("/livez").status == 200
