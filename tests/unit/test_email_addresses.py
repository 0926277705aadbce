"""Which text is an address, under which key it is the same one, and that a refusal repeats nothing."""

from __future__ import annotations

import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actors.domain.email_address import EmailAddress
from actors.domain.errors import InvalidEmail
from service.passwords import DOT_ATOM, EmailAddresses

READER = EmailAddresses()
LABEL = "a" * 63


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("ada@example.com", "ada@example.com"),
        ("o'neil+tag@example.com", "o'neil+tag@example.com"),
        ("Ada.Lovelace@Example.COM", "ada.lovelace@example.com"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("ada@BÜCHER.example", "ada@xn--bcher-kva.example"),
        ("ada@bu\u0308cher.example", "ada@xn--bcher-kva.example"),
        ("ada@xn--bcher-kva.example", "ada@xn--bcher-kva.example"),
        ("ada@例え.jp", "ada@xn--r8jz45g.jp"),
        ("ada@faß.de", "ada@xn--fa-hia.de"),
        ("a" * 64 + "@example.com", "a" * 64 + "@example.com"),
        ("!#$%&'*+-/=?^_`{|}~@example.com", "!#$%&'*+-/=?^_`{|}~@example.com"),
        ("someone@some.test", "someone@some.test"),
        (f"{'a' * 60}@{LABEL}.{LABEL}.{'a' * 61}.com", f"{'a' * 60}@{LABEL}.{LABEL}.{'a' * 61}.com"),
    ],
)
def test_a_valid_address_is_kept_as_typed_under_its_key(typed: str, key: str) -> None:
    """The key is the casefolded local part and the domain after NFC and IDNA."""
    assert READER.read(typed) == EmailAddress(typed, key)


REFUSED = {
    "a part too few or too many": ["", "ada", "@", "@example.com", "ada@", "ada@@example.com", "ada@home@example.com"],
    "blanks": [" ada@example.com", "ada@example.com ", "ada@example.com\n", "ada @example.com", "ada@exam ple.com"],
    "invisible characters": ["ada@example.com\u00a0", "ada\u200b@example.com", "ada@exam\u202eple.com"],
    "NULs and broken characters": ["ada\0@example.com", "ada@example.com\0", "ada@exam\ud800ple.com"],
    "display names and lists": ["Ada <ada@example.com>", "<ada@example.com>", "ada@example.com,bob@example.com"],
    "quotes and comments": ['"ada"@example.com', '"a b"@example.com', "ada(comment)@example.com"],
    "address literals": ["ada@[127.0.0.1]", "ada@[IPv6:::1]", "ada@127.0.0.1"],
    "other characters": ["ádá@example.com", "\u212adele@example.com", "ada\ud800@example.com", "ada@\u2100.com"],
    "dots before the @": [".ada@example.com", "ada.@example.com", "ada..lovelace@example.com"],
    "dots behind it": ["ada@example.com.", "ada@example..com"],
    "one label": ["ada@localhost", "ada@test", "ada@example"],
    "names that no mail server has": ["ada@machine.local", "ada@name.invalid"],
    "broken labels": ["ada@-example.com", "ada@exa_mple.com", f"ada@{'a' * 64}.com"],
    "broken A-labels": ["ada@xn--.com", "ada@xn--\u00fc.com"],
    "a second header": ["ada@example.com\r\nBcc: bob@example.com"],
    "65 before the @": ["a" * 65 + "@example.com"],
    "255 in all": [f"{'a' * 62}@{LABEL}.{LABEL}.{'a' * 61}.com", "ada@" + ("ü" * 60 + ".") * 3 + "com"],
}


@pytest.mark.parametrize("typed", [text for texts in REFUSED.values() for text in texts])
def test_anything_else_is_refused_without_being_repeated(typed: str) -> None:
    """The refusal is one sentence that says what to mend, and shows nothing of the text."""
    with pytest.raises(InvalidEmail) as caught:
        READER.read(typed)
    message = caught.value.message
    assert message.endswith(".")
    assert all(part not in message for part in ("ada", "example", "lovelace", "bob", "127"))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_an_address_over_the_limit_only_in_ascii_is_refused() -> None:
    """254 bytes are counted in the form that the mail server sees, too."""
    typed = "a" * 64 + "@" + ".".join(["ü" + "a" * 52] * 3) + ".example.com"
    assert len(typed.encode()) < 254
    with pytest.raises(InvalidEmail, check=lambda error: "longer" in error.message):
        READER.read(typed)


locals_ = st.text(string.ascii_letters + string.digits + "!#$%&'*+-/=?^_`{|}~.", min_size=1, max_size=64)
labels = st.from_regex(r"[a-z0-9]([a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)


@given(local=locals_, labels=st.lists(labels, min_size=1, max_size=3))
def test_case_makes_no_other_address(local: str, labels: list[str]) -> None:
    """A valid address is valid in every case, and has one key, which reads back to itself."""
    assume(DOT_ATOM.fullmatch(local))
    domain = ".".join([*labels, "example", "com"])
    address = READER.read(f"{local}@{domain}")
    assert address.key == f"{local.casefold()}@{domain}"
    assert READER.read(f"{local.upper()}@{domain.upper()}").key == address.key
    assert READER.read(address.key).key == address.key
    assert address.local_part == local.casefold()


@given(text=st.text(max_size=300))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """There is no third outcome; what is read fits every column and header."""
    try:
        address = READER.read(text)
    except InvalidEmail:
        return
    assert address.typed == text
    assert address.key.isascii()
    assert address.key.isprintable()
    assert len(address.key) <= 254


def test_an_address_is_not_shown() -> None:
    """Its repr is safe in a log."""
    assert repr(READER.read("ada@example.com")) == "EmailAddress()"
