"""Addresses, passwords and Authorization headers at their edges, at the real service."""

from __future__ import annotations

from base64 import b64encode
from secrets import token_hex
from typing import TYPE_CHECKING

import pytest

from tests.e2e.client import USERS, basic

if TYPE_CHECKING:
    from tests.e2e.conftest import Story

PASSWORD = "correct horse battery"
DOMAIN = f"{'b' * 63}.{'c' * 63}.{'d' * 56}.test"  # with 64 bytes before the @ 254 in all
BAD_ADDRESSES = {
    "empty": "",
    "no @": "ada",
    "nothing before the @": "@example.test",
    "nothing behind the @": "ada@",
    "two @": "ada@eve@example.test",
    "a quoted name": '"ada lovelace"@example.test',
    "a quoted plain name": '"ada"@example.test',
    "a comment": "ada(x)@example.test",
    "a display name": "Ada <ada@example.test>",
    "brackets": "<ada@example.test>",
    "a list": "ada@example.test,eve@example.test",
    "an IPv4 literal": "ada@[127.0.0.1]",
    "an IPv6 literal": "ada@[IPv6:::1]",
    "a bare IPv4 address": "ada@127.0.0.1",
    "a blank in front": " ada@example.test",
    "a blank behind": "ada@example.test ",
    "a no-break space behind": "ada@example.test\u00a0",
    "a blank inside": "ada lovelace@example.test",
    "a dot in front": ".ada@example.test",
    "two dots": "ada..l@example.test",
    "a non-ASCII name": "adä@example.test",
    "a zero-width space": "ada\u200b@example.test",
    "a right-to-left mark in the domain": "ada@exam\u202eple.test",
    "one label": "ada@localhost",
    "an underscore": "ada@exa_mple.test",
    "a hyphen in front of a label": "ada@-example.test",
    "an empty label": "ada@example..test",
    "a label of 64": f"ada@{'a' * 64}.test",
    "a broken A-label": "ada@xn--\u00fc.test",
    "65 before the @": f"{'a' * 65}@example.test",
    "255 in all": f"{'a' * 64}@{DOMAIN.replace('d' * 56, 'd' * 57)}",
    "255 in ASCII": "ada@" + "a\u00fc." * 55 + "test",
    "16,000": "a" * 7_990 + "@" + "b" * 7_990,
}
WEAK = {
    "seven bytes": ("x7#kq2z", ["too_short"]),
    "three characters of two bytes": ("äöü", ["too_short"]),
    "empty": ("", ["too_short"]),
    "73 bytes": ("k" * 72 + "7", ["too_long"]),
    "19 characters of four bytes": ("\U0001f40e" * 19, ["too_long"]),
    "72 bytes that normalise to 144": ("\u0958" * 24, ["too_long"]),
    "37 composed characters, typed apart": ("e\u0301" * 37, ["too_long"]),
    "well known": ("password1", ["common"]),
    "well known, in capitals": ("PASSWORD1", ["common"]),
}
STRONG = {
    "eight bytes": "x7#kq2z!",
    "four characters of two bytes": "äöüß",
    "72 bytes": "k" * 71 + "7",
    "18 characters of four bytes": "\U0001f40e" * 18,
    "36 composed characters, typed apart": "e\u0301" * 36,
    "blanks around": "  correct horse battery  ",
    "colons": "correct:horse:battery",
}
HEADERS = {
    "none": [],
    "empty": [""],
    "the scheme alone": ["Basic"],
    "another scheme": ["Bearer YTpi"],
    "no base64": ["Basic ???"],
    "base64 without padding": ["Basic " + b64encode(b"ada@example.test:x").decode().rstrip("=")],
    "base64 for URLs": ["Basic " + b64encode(b"ada@example.test:\xc3\xbf\xc3\xbf").decode().replace("/", "_")],
    "base64 with bits to spare": ["Basic YTpiYz=="],
    "no colon": ["Basic " + b64encode(b"ada@example.test").decode()],
    "broken UTF-8": ["Basic " + b64encode(b"ada@example.test:\xff\xfe").decode()],
    "a surrogate": ["Basic " + b64encode(b"ada@example.test:\xed\xa0\x80").decode()],
    "NUL": [basic("ada@example.test", "correct\0horse")],
    "NUL in the address": [basic("ada\0@example.test", PASSWORD)],
    "a line break": [basic("ada@example.test\r\nX: y", PASSWORD)],
    "an empty address": [basic("", PASSWORD)],
    "an empty password": [basic("ada@example.test", "")],
    "73 bytes": [basic("ada@example.test", "k" * 73)],
    "10,000 bytes": [basic("ada@example.test", "k" * 10_000)],
    "an address that is none": [basic("'; DROP TABLE users; --", PASSWORD)],
    "two": [basic("ada@example.test", PASSWORD), basic("ada@example.test", PASSWORD)],
    "a list": [basic("ada@example.test", PASSWORD) + ", " + basic("ada@example.test", PASSWORD)],
    "parameters": [basic("ada@example.test", PASSWORD) + ";x=y"],
}


@pytest.mark.parametrize("address", BAD_ADDRESSES.values(), ids=BAD_ADDRESSES)
def test_what_no_mail_can_be_sent_to_is_no_address(story: Story, address: str) -> None:
    """422 InvalidEmail, which does not repeat what was typed."""
    answer = story.place.client().post(f"{USERS}/register", {"email": address, "password": PASSWORD})
    assert answer.outcome == "422 InvalidEmail"
    assert not address or address.encode() not in answer.body.replace(b"@.", b"")


@pytest.mark.parametrize(
    ("typed", "same"),
    [
        ("o'neil+tag.{}@example.test", "O'NEIL+TAG.{}@EXAMPLE.TEST"),
        ("ada.{}@b\u00fccher.test", "ada.{}@xn--bcher-kva.test"),
        ("ada.{}@b\u00fccher.test", "ADA.{}@BU\u0308CHER.TEST"),
        ("ada.{}@\u4f8b\u5b50.test", "ada.{}@XN--FSQU00A.test"),
        ("{:a<64}@example.test", "{:A<64}@example.test"),
        ("{:a<64}@" + DOMAIN, "{:A<64}@" + DOMAIN.upper()),
    ],
    ids=["plus and apostrophe", "IDN", "IDN, decomposed", "Chinese", "64 before the @", "254 in all"],
)
def test_an_address_works_in_all_its_spellings(story: Story, typed: str, same: str) -> None:
    """It registers once, gets its mail, and activates under another spelling; the account shows it as typed."""
    person, token = story.place.person(), token_hex(6)
    typed, same = typed.format(token), same.format(token.upper() if "{:A" in same else token)
    answer = person.client.register(typed, person.password)
    assert answer.outcome == "201"
    assert answer.json()["email"] == typed
    assert person.client.register(same, person.password).outcome == "409 UserAlreadyExists"
    local, _, domain = typed.rpartition("@")
    to = f"{local}@{domain.encode('idna').decode()}"
    code = story.place.post.wait(to).code
    assert person.client.activate(same, person.password, code).outcome == "200"
    assert person.client.me(same, person.password).json()["email"] == typed


@pytest.mark.parametrize(("password", "reasons"), WEAK.values(), ids=WEAK)
def test_weak_passwords_are_refused_with_their_reasons(story: Story, password: str, reasons: list[str]) -> None:
    """422 WeakPassword; bytes count after NFC."""
    answer = story.place.client().post(f"{USERS}/register", {"email": story.place.person().email, "password": password})
    assert (answer.outcome, answer.json()["reasons"]) == ("422 WeakPassword", reasons)


def test_the_address_is_no_password(story: Story) -> None:
    """Neither the whole of it nor the part before the @."""
    email = story.place.person().email
    for password in (email, email.upper(), email.partition("@")[0]):
        answer = story.place.client().post(f"{USERS}/register", {"email": email, "password": password})
        assert (answer.outcome, answer.json()["reasons"]) == ("422 WeakPassword", ["contains_address"])


@pytest.mark.parametrize("password", STRONG.values(), ids=STRONG)
def test_passwords_at_the_edges_work(story: Story, password: str) -> None:
    """They register and read the account; a byte more or less does not."""
    person = story.place.person()
    assert person.client.register(person.email, password).outcome == "201"
    assert person.client.me(person.email, password).outcome == "200"
    for other in (password + "x", password[:-1], password.upper() + "-"):
        assert person.client.me(person.email, other).outcome == "401 InvalidCredentials"


def test_a_password_is_the_same_composed_or_not(story: Story) -> None:
    """Keyboards differ; NFC makes them equal."""
    person = story.place.person()
    assert person.client.register(person.email, "cre\u0300me br\u00fbl\u00e9e").outcome == "201"
    assert person.client.me(person.email, "cr\u00e8me bru\u0302le\u0301e").outcome == "200"
    assert person.client.me(person.email, "creme brulee").outcome == "401 InvalidCredentials"


@pytest.mark.parametrize("values", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("call", ["POST activate", "POST resend", "GET me", "GET activation"])
def test_broken_credentials_are_wrong_credentials(story: Story, values: list[str], call: str) -> None:
    """401 InvalidCredentials with the challenge, whatever is wrong with the header."""
    method, name = call.split()
    headers = [("Authorization", value) for value in values]
    body = b'{"activation_code": "1234567890"}' if name == "activate" else None
    media = [("Content-Type", "application/json")] if body else []
    answer = story.place.client().send(method, f"{USERS}/{name}", body, headers + media)
    assert answer.outcome == "401 InvalidCredentials"
    assert answer.header("WWW-Authenticate") == 'Basic realm="vestibule", charset="UTF-8"'
