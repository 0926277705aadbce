"""Codes, tokens and digests: what is derived, what is told apart, and what nobody can forge."""

from __future__ import annotations

import string
from collections import Counter
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from actors.domain.code import Keyring, Purpose, hkdf_sha256, typed_code
from actors.domain.errors import InvalidCode

KEY, OTHER_KEY = bytes(range(32)), bytes(range(32, 64))
ACCOUNT, MAIL = UUID(int=1), UUID(int=2)
KEYRING = Keyring({"k2": OTHER_KEY, "k1": KEY})
uuids = st.uuids()


@given(key=st.binary(min_size=1, max_size=80), info=st.binary(max_size=80))
def test_sub_keys_are_derived_as_rfc_5869_says(key: bytes, info: bytes) -> None:
    """As another implementation does it."""
    assert hkdf_sha256(key, info) == HKDF(SHA256(), 32, None, info).derive(key)


@given(account=uuids, mail=uuids, digits=st.integers(4, 10))
def test_a_code_is_so_many_ascii_digits(account: UUID, mail: UUID, digits: int) -> None:
    """Leading zeros are kept, whatever the length."""
    code = Keyring({"k": KEY}, digits).code(account, mail, "k")
    assert len(code) == digits
    assert set(code) <= set(string.digits)
    assert typed_code(code, digits) == code


def test_codes_are_spread_evenly() -> None:
    """Each digit of the first place and of the last comes about as often as the others."""
    codes = [KEYRING.code(ACCOUNT, UUID(int=number), "k2") for number in range(5000)]
    for place in (0, -1):
        counts = Counter(code[place] for code in codes)
        assert set(counts) == set(string.digits)
        assert all(400 < count < 600 for count in counts.values())


@given(account=uuids, other=uuids, mail=uuids)
def test_a_code_belongs_to_its_account_and_its_mail(account: UUID, other: UUID, mail: UUID) -> None:
    """The same mail id under another account is another derivation; the same one again is the same code."""
    keyring = Keyring({"k": KEY}, 10)
    code = keyring.code(account, mail, "k")
    assert keyring.matches(account, mail, "k", code)
    assert keyring.matches(other, mail, "k", code) == (account == other)


@given(typed=st.text())
def test_any_text_is_compared_without_an_error(typed: str) -> None:
    """Only the code itself matches; other text, in any script, does not."""
    assert KEYRING.matches(ACCOUNT, MAIL, "k2", typed) == (typed == KEYRING.code(ACCOUNT, MAIL, "k2"))


def test_a_removed_key_takes_its_codes_with_it() -> None:
    """What was derived under a key that is gone matches nothing and cannot be derived."""
    old = Keyring({"k0": KEY})
    assert "k0" in old
    assert "k0" not in KEYRING
    assert not KEYRING.matches(ACCOUNT, MAIL, "k0", old.code(ACCOUNT, MAIL, "k0"))
    with pytest.raises(KeyError):
        KEYRING.code(ACCOUNT, MAIL, "k0")


@given(account=uuids, registration=st.integers(1, 2**31))
def test_a_rotated_key_still_verifies(account: UUID, registration: int) -> None:
    """The first key signs; codes, tokens and digests of the one before it stay good, and subjects stay the same."""
    before = Keyring({"k1": KEY})
    assert KEYRING.signing == "k2"
    assert KEYRING.matches(ACCOUNT, MAIL, "k1", before.code(ACCOUNT, MAIL, "k1"))
    assert KEYRING.read_status_token(before.status_token(account, registration)) == (account, registration)
    assert before.read_status_token(KEYRING.status_token(account, registration)) is None
    assert KEYRING.subject("a", "b") == before.subject("a", "b")
    assert KEYRING.idempotency_digests("a", "b")[1:] == before.idempotency_digests("a", "b")


def test_every_purpose_has_a_key_of_its_own() -> None:
    """No two purposes share a sub-key, and none is the operator's key itself."""
    derived = {hkdf_sha256(KEY, purpose.encode()) for purpose in Purpose}
    assert len(derived) == len(Purpose)
    assert KEY not in derived


@given(account=uuids, place=st.integers(0, 47), letter=st.sampled_from(string.ascii_letters + string.digits + "-_"))
def test_a_changed_status_token_is_forged(account: UUID, place: int, letter: str) -> None:
    """It is safe in a path, and one other character makes it nobody's."""
    token = KEYRING.status_token(account, 1)
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")
    changed = token[:place] + letter + token[place + 1 :]
    assert KEYRING.read_status_token(changed) == ((account, 1) if changed == token else None)


@given(text=st.text(max_size=60))
def test_other_text_is_no_status_token(text: str) -> None:
    """Anything but a token is forged, and never an error."""
    assert KEYRING.read_status_token(text) is None


@pytest.mark.parametrize("change", [" {}", "{} ", "{}=", "{}\n", "*{}"])
def test_a_status_token_has_one_form(change: str) -> None:
    """What a decoder would forgive is refused."""
    assert KEYRING.read_status_token(change.format(KEYRING.status_token(MAIL, 1))) is None


@given(parts=st.lists(st.text(), min_size=1, max_size=3), others=st.lists(st.text(), min_size=1, max_size=3))
def test_digests_tell_their_parts_apart(parts: list[str], others: list[str]) -> None:
    """Joined differently, the same text is another subject and another key."""
    assert (KEYRING.subject(*parts) == KEYRING.subject(*others)) == (parts == others)
    assert (KEYRING.idempotency_digests(*parts) == KEYRING.idempotency_digests(*others)) == (parts == others)
    assert [len(digest) for digest in KEYRING.idempotency_digests(*parts)] == [32, 32]


def test_a_keyring_needs_a_key_and_shows_none() -> None:
    """Without a key nothing could be derived; its repr names the key ids alone."""
    with pytest.raises(ValueError, match=r"^a keyring needs at least one key$"):
        Keyring({})
    assert repr(KEYRING) == "Keyring(k2, k1)"


@pytest.mark.parametrize(
    "typed", ["123456", " 123 456 ", "123-456", "12\u201034\u201156", "1\u00a02\u20073\u202f456\r\n"]
)
def test_blanks_and_hyphens_in_a_code_do_not_matter(typed: str) -> None:
    """What people and mail clients put between digits is ignored."""
    assert typed_code(typed, 6) == "123456"


WRONG_LENGTH = ["", "12345", "1234567"]
OTHER_DIGITS = ["\uff11\uff12\uff13\uff14\uff15\uff16", "\u0661\u0662\u0663\u0664\u0665\u0666"]


@pytest.mark.parametrize("typed", [*WRONG_LENGTH, *OTHER_DIGITS, "12345a", "123456\0", "+12345", "1.2345"])
def test_anything_else_is_no_code(typed: str) -> None:
    """Only so many ASCII digits can be a code; the refusal names their number, not the text."""
    with pytest.raises(InvalidCode) as caught:
        typed_code(typed, 6)
    assert caught.value.digits == 6
    assert str(caught.value) == ""
