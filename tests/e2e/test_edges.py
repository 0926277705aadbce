"""One of each kind of what is at the edge or beyond it, at the real service; tests/unit has all the cases."""

from __future__ import annotations

import json
from base64 import b64encode
from secrets import token_hex
from typing import TYPE_CHECKING

import pytest

from tests.e2e.client import USERS, basic

if TYPE_CHECKING:
    from tests.e2e.conftest import Story

PATH = f"{USERS}/register"
PASSWORD = "correct horse battery"
GOOD = {"email": "ada@example.test", "password": PASSWORD}
DOMAIN = f"{'b' * 63}.{'c' * 63}.{'d' * 56}.test"  # with 64 bytes before the @ 254 in all
MALFORMED = {
    "nothing": b"",
    "an array": b'["ada@example.test"]',
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "a lone surrogate": b'{"email": "\\ud800@example.test", "password": "correct horse battery"}',
    "NaN": b'{"email": NaN, "password": "correct horse battery"}',
    "a name twice": b'{"email": "ada@example.test", "\\u0065mail": "eve@example.test"}',
    "nested arrays": b'{"email": ' + b"[" * 8000 + b"]" * 8000 + b"}",
}
REFUSED = {
    "no password": ({"email": "ada@example.test"}, "422 ValidationError"),
    "an unknown field": ({**GOOD, "is_admin": True}, "422 ValidationError"),
    "an object for an address": ({**GOOD, "email": {"$ne": ""}}, "422 ValidationError"),
    "a line break in the address": ({**GOOD, "email": "a@b.test\r\nBcc: eve@example.test"}, "422 ValidationError"),
    "NUL in the password": ({**GOOD, "password": "correct\0horse battery"}, "422 ValidationError"),
    "a path for a language": ({**GOOD, "locale": "../../etc/passwd"}, "422 ValidationError"),
    "a display name": ({**GOOD, "email": "Ada <ada@example.test>"}, "422 InvalidEmail"),
    "a non-ASCII name": ({**GOOD, "email": "adä@example.test"}, "422 InvalidEmail"),
    "255 bytes": ({**GOOD, "email": f"{'a' * 65}@{DOMAIN}"}, "422 InvalidEmail"),
    "three characters of two bytes": ({**GOOD, "password": "äöü"}, "422 WeakPassword"),
    "72 bytes that normalise to 144": ({**GOOD, "password": "\u0958" * 24}, "422 WeakPassword"),
    "a well-known password": ({**GOOD, "password": "PASSWORD1"}, "422 WeakPassword"),
    "the address itself": ({**GOOD, "password": "Ada@example.test"}, "422 WeakPassword"),
}
MEDIA = {
    "none": [],
    "a form": [("Content-Type", "application/x-www-form-urlencoded")],
    "two": [("Content-Type", "application/json"), ("Content-Type", "application/json")],
    "Latin-1": [("Content-Type", "application/json; charset=iso-8859-1")],
    "gzip": [("Content-Type", "application/json"), ("Content-Encoding", "gzip")],
}
HEADERS = {
    "none": [],
    "another scheme": ["Bearer YTpi"],
    "no colon": ["Basic " + b64encode(b"ada@example.test").decode()],
    "broken UTF-8": ["Basic " + b64encode(b"ada@example.test:\xff\xfe").decode()],
    "NUL": [basic("ada@example.test", "correct\0horse")],
    "73 bytes": [basic("ada@example.test", "k" * 73)],
    "an address that is none": [basic("'; DROP TABLE users; --", PASSWORD)],
    "two": [basic("ada@example.test", PASSWORD)] * 2,
}
SPELLINGS = {
    "plus and apostrophe": ("o'neil+tag.{}@example.test", "O'NEIL+TAG.{}@EXAMPLE.TEST"),
    "IDN": ("ada.{}@b\u00fccher.test", "ada.{}@xn--bcher-kva.test"),
    "IDN, decomposed": ("ada.{}@b\u00fccher.test", "ADA.{}@BU\u0308CHER.TEST"),
    "254 bytes": ("{:a<64}@" + DOMAIN, "{:A<64}@" + DOMAIN.upper()),
}
PASSWORDS = {
    "four characters of two bytes": ("äöüß", "äöüß"),
    "72 bytes": ("k" * 71 + "7", "k" * 71 + "7"),
    "36 characters, composed and not": ("e\u0301" * 36, "\u00e9" * 36),
    "blanks around, colons inside": ("  correct:horse:battery  ", "  correct:horse:battery  "),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_json_object_is_malformed(story: Story, body: bytes) -> None:
    """400 MalformedRequest, wherever the reader stumbles."""
    assert story.place.client().post(PATH, body).outcome == "400 MalformedRequest"


@pytest.mark.parametrize(("form", "outcome"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_form_is_refused_without_its_values(story: Story, form: dict[str, object], outcome: str) -> None:
    """422 with what is wrong, which repeats nothing of what was typed."""
    answer = story.place.client().post(PATH, form)
    assert answer.outcome == outcome
    for typed in ("correct", "example.test", "etc/passwd", "adä", "PASSWORD1"):
        assert typed.encode() not in answer.body


@pytest.mark.parametrize("headers", MEDIA.values(), ids=MEDIA)
def test_other_media_are_refused(story: Story, headers: list[tuple[str, str]]) -> None:
    """415 UnsupportedMediaType."""
    answer = story.place.client().send("POST", PATH, json.dumps(GOOD).encode(), headers)
    assert answer.outcome == "415 UnsupportedMediaType"


@pytest.mark.parametrize("values", HEADERS.values(), ids=HEADERS)
def test_broken_credentials_are_wrong_credentials(story: Story, values: list[str]) -> None:
    """401 InvalidCredentials with the challenge, whatever is wrong with the header, at every call."""
    for call in ("POST activate", "POST resend", "GET me", "GET activation"):
        method, name = call.split()
        body = b'{"activation_code": "1234567890"}' if name == "activate" else None
        headers = [("Authorization", value) for value in values]
        headers += [("Content-Type", "application/json")] if body else []
        answer = story.place.client().send(method, f"{USERS}/{name}", body, headers)
        assert answer.outcome == "401 InvalidCredentials"
        assert answer.header("WWW-Authenticate") == 'Basic realm="vestibule", charset="UTF-8"'


@pytest.mark.parametrize(("typed", "same"), SPELLINGS.values(), ids=SPELLINGS)
def test_an_address_works_in_all_its_spellings(story: Story, typed: str, same: str) -> None:
    """It registers once, gets its mail, and activates under another spelling; the account shows it as typed."""
    person, token = story.place.person(), token_hex(6)
    typed, same = typed.format(token), same.format(token.upper() if "{:A" in same else token)
    answer = person.client.register(typed, person.password)
    assert (answer.outcome, answer.json()["email"]) == ("201", typed)
    assert person.client.register(same, person.password).outcome == "409 UserAlreadyExists"
    local, _, domain = typed.rpartition("@")
    code = story.place.post.wait(f"{local}@{domain.encode('idna').decode()}").code
    assert person.client.activate(same, person.password, code).outcome == "200"
    assert person.client.me(same, person.password).json()["email"] == typed


@pytest.mark.parametrize(("password", "same"), PASSWORDS.values(), ids=PASSWORDS)
def test_passwords_at_the_edges_work(story: Story, password: str, same: str) -> None:
    """They register and read the account, composed or not; a byte more or less does not."""
    person = story.place.person()
    assert person.client.register(person.email, password).outcome == "201"
    assert person.client.me(person.email, same).outcome == "200"
    for other in (password + "x", password[:-1], password.upper() + "-"):
        assert person.client.me(person.email, other).outcome == "401 InvalidCredentials"


def test_a_body_of_16_kib_is_read_in_one_piece_or_in_chunks(story: Story) -> None:
    """The limit is where the contract says; a client need not know the length in advance."""
    person = story.place.person()
    form = json.dumps({"email": person.email, "password": person.password}).encode().ljust(16 * 1024)
    assert person.client.post(PATH, form).outcome == "201"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (form[:10], form[10:])) + b"0\r\n\r\n"
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert person.client.raw(head.encode() + chunks).outcome == "409 UserAlreadyExists"
