from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.domain.errors import InvalidCredentials
from actors.forms import Credentials
from service.http.basic_auth import controls, credentials

PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=80)


def header(raw: bytes, scheme: str = "Basic") -> str:
    """Return an Authorization header."""
    return f"{scheme} {b64encode(raw).decode()}"


@given(PLAIN.filter(lambda text: ":" not in text), PLAIN)
def test_what_a_client_encodes_is_what_we_read(email: str, password: str) -> None:
    """Address and password come through as typed; the first colon parts them."""
    assert credentials([header(f"{email}:{password}".encode())]) == Credentials(email, password)


@given(st.lists(st.text(max_size=60) | st.binary(max_size=40).map(header), max_size=2))
def test_any_header_is_read_or_refused(values: list[str]) -> None:
    """No Authorization header fails otherwise than as wrong credentials."""
    try:
        who = credentials(values)
    except InvalidCredentials:
        return
    assert not controls(who.email + who.password)


@pytest.mark.parametrize("scheme", ["basic", "BASIC", "Basic  "])
def test_the_scheme_may_be_written_in_any_case(scheme: str) -> None:
    """RFC 7235: the scheme is case-insensitive, one or more blanks follow."""
    assert credentials([header(b"a:b:c", scheme)]) == Credentials("a", "b:c")


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["Basic"],
        ["Basic "],
        ["Basic\tYTpi"],
        ["Basic YTpi,"],
        ["Basic YTpi YTpi"],
        ["Basic YTp i"],
        ["Basic YTpj="],
        ["Basic YTo"],
        ["Basic YTp="],
        ["Basic YTq="],
        ["Basic YQ=="],
        ["Basic YTpi", "Basic YTpi"],
        ["Bearer YTpi"],
        ["Basic YTpi\n"],
        [header(b"a:\xff")],
        [header(b"a:b\x00")],
        [header(b"a\x1f:b")],
        [header("a:b\x85".encode())],
        [header(b"a:b").replace("YTpi", "YTp_")],
        ["Basic ÿÿÿÿ"],
    ],
)
def test_broken_headers_are_wrong_credentials(values: list[str]) -> None:
    """Not one header, not canonical base64, not UTF-8, no colon or a control character: all are refused alike."""
    with pytest.raises(InvalidCredentials):
        credentials(values)


def test_credentials_are_not_shown() -> None:
    """A repr holds neither the address nor the password."""
    assert "secret" not in repr(credentials([header(b"secret@example.com:secret")]))
