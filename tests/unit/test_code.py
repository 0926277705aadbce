"""Codes, tokens and digests: what is derived, what is told apart, and what nobody can forge."""

from __future__ import annotations

import string
from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.domain.code import CodeId, Keyring, Purpose, hkdf_sha256, typed_code
from actors.domain.errors import InvalidCode

KEY, OTHER_KEY = bytes(range(32)), bytes(range(32, 64))
ACCOUNT, NUMBER = UUID(int=1), UUID(int=2)
RING = Keyring({"k2": OTHER_KEY, "k1": KEY})
uuids = st.uuids()


@pytest.mark.parametrize(
    ("key", "salt", "info", "length", "expected"),
    [
        (
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            42,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            bytes(range(0x50)).hex(),
            bytes(range(0x60, 0xB0)).hex(),
            bytes(range(0xB0, 0x100)).hex(),
            82,
            (
                "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
                "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
                "cc30c58179ec3e87c14c01d5c1f3434f1d87"
            ),
        ),
        (
            "0b" * 22,
            "",
            "",
            42,
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
    ids=["A.1", "A.2", "A.3"],
)
def test_sub_keys_are_derived_as_rfc_5869_says(key: str, salt: str, info: str, length: int, expected: str) -> None:
    """The appendix' vectors for SHA-256."""
    derived = hkdf_sha256(bytes.fromhex(key), bytes.fromhex(info), salt=bytes.fromhex(salt), length=length)
    assert derived.hex() == expected


@given(account=uuids, number=uuids, digits=st.integers(4, 10))
def test_a_code_is_so_many_ascii_digits(account: UUID, number: UUID, digits: int) -> None:
    """Leading zeros are kept, whatever the length."""
    ring = Keyring({"k": KEY}, digits)
    code = ring.code(account, ring.code_id(number))
    assert len(code) == digits
    assert set(code) <= set(string.digits)
    assert typed_code(code, digits) == code


def test_codes_are_spread_evenly() -> None:
    """Each digit of the first place and of the last comes about as often as the others."""
    codes = [RING.code(ACCOUNT, RING.code_id(UUID(int=number))) for number in range(5000)]
    for place in (0, -1):
        counts = Counter(code[place] for code in codes)
        assert set(counts) == set(string.digits)
        assert all(400 < count < 600 for count in counts.values())


@given(account=uuids, other=uuids, number=uuids)
def test_a_code_belongs_to_its_account_and_its_number(account: UUID, other: UUID, number: UUID) -> None:
    """The same code id under another account is another derivation; the same one again is the same code."""
    ring = Keyring({"k": KEY}, 10)
    code_id = ring.code_id(number)
    assert ring.matches(account, code_id, ring.code(account, code_id))
    assert ring.matches(other, code_id, ring.code(account, code_id)) == (account == other)


@given(typed=st.text())
def test_whatever_is_typed_is_compared_without_an_error(typed: str) -> None:
    """Only the code itself matches; other text, in any script, does not."""
    code_id = RING.code_id(NUMBER)
    assert RING.matches(ACCOUNT, code_id, typed) == (typed == RING.code(ACCOUNT, code_id))


def test_any_of_several_codes_can_be_the_typed_one() -> None:
    """The place of the hit makes no difference."""
    ids = [RING.code_id(UUID(int=number)) for number in range(3)]
    assert all(RING.any_matches(ACCOUNT, ids, RING.code(ACCOUNT, code_id)) for code_id in ids)
    assert not RING.any_matches(ACCOUNT, ids, "no code")
    assert not RING.any_matches(ACCOUNT, [], RING.code(ACCOUNT, ids[0]))


def test_a_removed_key_takes_its_codes_with_it() -> None:
    """What was derived under a key that is gone matches nothing and cannot be derived."""
    old = Keyring({"k0": KEY})
    code_id = old.code_id(NUMBER)
    assert not RING.matches(ACCOUNT, code_id, old.code(ACCOUNT, code_id))
    with pytest.raises(KeyError):
        RING.code(ACCOUNT, code_id)


@given(registration=uuids, number=uuids)
def test_a_rotated_key_still_verifies(registration: UUID, number: UUID) -> None:
    """The first key signs; codes and tokens of the one before it stay good, and subjects stay the same."""
    before = Keyring({"k1": KEY})
    code_id = before.code_id(number)
    assert RING.code_id(number).kid == "k2"
    assert RING.matches(ACCOUNT, code_id, before.code(ACCOUNT, code_id))
    assert RING.registration(before.status_token(registration)) == registration
    assert before.registration(RING.status_token(registration)) is None
    assert RING.subject("a", "b") == before.subject("a", "b")
    assert RING.idempotency_digest("a", "b") == before.idempotency_digest("a", "b")


def test_every_purpose_has_a_key_of_its_own() -> None:
    """No two purposes share a sub-key, and none is the operator's key itself."""
    derived = {hkdf_sha256(KEY, purpose.encode()) for purpose in Purpose}
    assert len(derived) == len(Purpose)
    assert KEY not in derived


@given(registration=uuids)
def test_a_status_token_names_its_registration(registration: UUID) -> None:
    """Read back, the token gives what it was made for; it is safe in a path."""
    token = RING.status_token(registration)
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")
    assert RING.registration(token) == registration


@given(
    registration=uuids, place=st.integers(0, 42), letter=st.sampled_from(string.ascii_letters + string.digits + "-_")
)
def test_a_changed_status_token_is_forged(registration: UUID, place: int, letter: str) -> None:
    """One other character, the spare bits of the last one included, makes it nobody's."""
    token = RING.status_token(registration)
    changed = token[:place] + letter + token[place + 1 :]
    assert RING.registration(changed) == (registration if changed == token else None)


@given(text=st.text(max_size=60))
def test_other_text_is_no_status_token(text: str) -> None:
    """Anything but a token is forged, and never an error."""
    assert RING.registration(text) is None


@pytest.mark.parametrize("change", [" {}", "{} ", "{}=", "{}\n", "*{}"])
def test_a_status_token_has_one_form(change: str) -> None:
    """What a decoder would forgive is refused."""
    assert RING.registration(change.format(RING.status_token(NUMBER))) is None


@given(parts=st.lists(st.text(), min_size=1, max_size=3), others=st.lists(st.text(), min_size=1, max_size=3))
def test_digests_tell_their_parts_apart(parts: list[str], others: list[str]) -> None:
    """Joined differently, the same text is another subject and another key."""
    assert (RING.subject(*parts) == RING.subject(*others)) == (parts == others)
    assert (RING.idempotency_digest(*parts) == RING.idempotency_digest(*others)) == (parts == others)
    assert len(RING.idempotency_digest(*parts)) == 32


@given(number=uuids, kid=st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=16))
def test_a_code_id_survives_its_text(number: UUID, kid: str) -> None:
    """What is stored is read back."""
    code_id = CodeId(kid, number)
    assert CodeId.parse(str(code_id)) == code_id


@pytest.mark.parametrize("text", ["", "k1", "k1.", f".{NUMBER.hex}", f"k1.{NUMBER}", f"k1.{{{NUMBER.hex}}}", "k1.xyz"])
def test_other_text_is_no_code_id(text: str) -> None:
    """A stored id has one form."""
    with pytest.raises(ValueError):  # noqa: PT011 - of whatever kind
        CodeId.parse(text)


def test_a_keyring_needs_a_key() -> None:
    """Without a key nothing could be derived."""
    with pytest.raises(ValueError, match="at least one key"):
        Keyring({})


def test_a_keyring_shows_no_key() -> None:
    """Its repr names the key ids alone."""
    assert repr(RING) == "Keyring(k2, k1)"


@pytest.mark.parametrize(
    "typed", ["123456", " 123 456 ", "123-456", "12\u201034\u201156", "1\u00a02\u20073\u202f456\r\n"]
)
def test_blanks_and_hyphens_in_a_code_do_not_matter(typed: str) -> None:
    """What people and mail clients put between digits is ignored."""
    assert typed_code(typed, 6) == "123456"


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "12345",
        "1234567",
        "12345a",
        "\uff11\uff12\uff13\uff14\uff15\uff16",
        "\u0661\u0662\u0663\u0664\u0665\u0666",
        "123456\0",
        "+12345",
        "1.2345",
    ],
)
def test_anything_else_is_no_code(typed: str) -> None:
    """Only so many ASCII digits can be a code; the refusal names their number, not the text."""
    with pytest.raises(InvalidCode) as caught:
        typed_code(typed, 6)
    assert caught.value.digits == 6
    assert str(caught.value) == ""
