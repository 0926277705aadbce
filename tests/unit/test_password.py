"""Passwords: one form whoever types them, bytes instead of characters, and reasons for each rule."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.domain.email_address import EmailAddress
from actors.domain.errors import WeakPassword
from actors.domain.password import LEAST_BYTES, MOST_BYTES, Password

COMMON = {"password", "12345678", "123456", "iloveyou", "qwertyuiop"}
ADA = EmailAddress("Ada.Lovelace@BÜCHER.example", "ada.lovelace@xn--bcher-kva.example")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def reasons(text: str) -> tuple[str, ...]:
    """Return why the password is refused; nothing means that it is good."""
    try:
        Password.typed(text).check_strength(ADA, COMMON)
    except WeakPassword as weak:
        return weak.reasons
    return ()


@given(text=texts)
def test_a_password_is_the_same_however_it_is_composed(text: str) -> None:
    """A keyboard that sends e and an accent checks the same as one that sends é."""
    composed, decomposed = unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)
    assert Password.typed(composed) == Password.typed(decomposed)
    assert Password.typed(text).secret == composed.encode()


@given(text=texts)
def test_length_is_counted_in_bytes(text: str) -> None:
    """8 and 72 are inside; what bcrypt would cut is too long."""
    size = len(unicodedata.normalize("NFC", text).encode())
    assert ("too_short" in reasons(text)) == (size < LEAST_BYTES)
    assert ("too_long" in reasons(text)) == (size > MOST_BYTES)


FITS = ["zq" * 4, "éé€x", "zq" * 36, "é" * 36, "e\u0301" * 36, "€" * 24, "\U0001f511" * 18, "ada.lovelace and more"]
SHORT = ["x" * 7, "éé€"]
LONG = ["zq" * 36 + "z", "é" * 36 + "z", "€" * 25, "\U0001f511" * 19]


@pytest.mark.parametrize("text", [*FITS, *SHORT, *LONG])
def test_the_edges_of_the_length(text: str) -> None:
    """Multi-byte characters count what they take, after NFC; there are no composition rules."""
    assert reasons(text) == ("too_short",) * (text in SHORT) + ("too_long",) * (text in LONG)


@pytest.mark.parametrize("text", ["password", "PASSWORD", "12345678", "Iloveyou", "qwertyuiop"])
def test_a_well_known_password_is_common(text: str) -> None:
    """Capitals do not make it a secret."""
    assert reasons(text) == ("common",)


def test_all_reasons_are_told_at_once() -> None:
    """Nobody mends one fault to hear of the next."""
    assert reasons("123456") == ("too_short", "common")


ADDRESSES = ["ada.lovelace@xn--bcher-kva.example", "ADA.LOVELACE@bücher.example", "ada.lovelace@bu\u0308cher.example"]


@pytest.mark.parametrize("text", [*ADDRESSES, "Ada.Lovelace"])
def test_the_address_is_no_password(text: str) -> None:
    """Neither the address in any of its forms nor the part before the @."""
    assert reasons(text) == ("contains_address",)


@pytest.mark.parametrize(("text", "expected"), [("x" * 72, True), ("x" * 73, False), ("nul\0inside", False)])
def test_what_bcrypt_cannot_take_is_known(text: str, *, expected: bool) -> None:
    """A password that bcrypt would cut is not hashed."""
    assert Password.typed(text).hashable is expected


def test_a_password_is_not_shown() -> None:
    """Neither its repr nor its refusal tells it."""
    password = Password.typed("123456")
    assert "123456" not in repr(password)
    with pytest.raises(WeakPassword) as caught:
        password.check_strength(ADA, COMMON)
    assert "123456" not in repr(caught.value)
