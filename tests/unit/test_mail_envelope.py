from __future__ import annotations

import email
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import default
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.domain.code import CodeId
from actors.domain.mail import ClaimedMail, MailKind, Rejected
from service.mailer.envelope import Envelopes, NoAddress, Sender, ascii_address, message
from service.mailer.wording import Wording, Written
from service.settings import BadSettings, Settings

CODE = "012345"
MAIL = ClaimedMail(
    id=UUID(int=1),
    fence=1,
    attempt=1,
    kind=MailKind.CODE,
    account=UUID(int=2),
    code_id=CodeId("k1", UUID(int=3)),
    recipient="ada@example.com",
    locale="en",
    life_left=900.0,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)
ENVELOPES = Envelopes(Sender.parse("Vestibule <no-reply@example.org>"), Wording(Settings(), "Vestibule"))


def sent(mail: ClaimedMail = MAIL, envelopes: Envelopes = ENVELOPES) -> EmailMessage:
    """Return the mail as its reader's program parses it."""
    parsed = email.message_from_bytes(message(envelopes.fill(mail, CODE)), policy=default)
    assert isinstance(parsed, EmailMessage)
    return parsed


def body(parsed: EmailMessage, form: str) -> str:
    """Return one body of a parsed mail."""
    part = parsed.get_body((form,))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


def test_a_mail_has_what_mail_servers_look_for() -> None:
    """Sender, recipient, date, id, language, and the marks of a mail that a machine wrote."""
    parsed = sent()
    assert str(parsed["From"]) == "Vestibule <no-reply@example.org>"
    assert str(parsed["To"]) == "ada@example.com"
    assert parsed["Date"].datetime.tzinfo is not None
    assert parsed["Message-ID"].endswith("@example.org>")
    assert parsed["Auto-Submitted"] == "auto-generated"
    assert parsed["Content-Language"] == "en"
    assert parsed.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in parsed.iter_parts()] == ["text/plain", "text/html"]


def test_the_code_is_a_line_of_the_text_part_and_in_no_header() -> None:
    """It is there after decoding, ungrouped."""
    parsed = sent()
    assert CODE in body(parsed, "plain").splitlines()
    assert CODE in body(parsed, "html")
    assert not any(CODE in value for value in parsed.values())


def test_an_english_text_travels_as_it_is_and_german_in_ascii() -> None:
    """The code's line is readable in the raw mail of either language; no server needs 8BITMIME."""
    for locale in ("en", "de"):
        raw = message(ENVELOPES.fill(replace(MAIL, locale=locale), CODE))
        assert f"\r\n{CODE}\r\n".encode() in raw
        assert raw.isascii()
        assert max(map(len, raw.split(b"\r\n"))) <= 998
    assert "Zu spät?" in body(sent(replace(MAIL, locale="de")), "plain")


@given(code=st.from_regex(r"[0-9]{4,10}", fullmatch=True), locale=st.sampled_from(["en", "de"]))
def test_every_code_is_set_into_the_shared_form_as_if_it_had_been_written_there(code: str, locale: str) -> None:
    """Mails of one wording are assembled once; what a reader decodes is the wording with this very code."""
    envelope = ENVELOPES.fill(replace(MAIL, locale=locale), code)
    parsed = email.message_from_bytes(message(envelope), policy=default)
    assert isinstance(parsed, EmailMessage)
    assert body(parsed, "plain") == envelope.written.text
    assert body(parsed, "html").rstrip() == (envelope.written.html or "").rstrip()


def test_digits_that_look_like_the_sample_are_left_alone() -> None:
    """A wording that holds the sample's digits itself is assembled anew for each mail."""
    written = Written("en", "Subject", "call 9472063185\n\n012345\n", "<p>9472063185 012345</p>\n", "012345")
    envelope = replace(ENVELOPES.fill(MAIL, CODE), written=written)
    parsed = email.message_from_bytes(message(envelope), policy=default)
    assert isinstance(parsed, EmailMessage)
    assert body(parsed, "plain") == written.text
    assert body(parsed, "html") == written.html


@pytest.mark.parametrize("length", [1, 57, 58, 59, 60, 64])
def test_a_recipient_of_any_length_is_one_header(length: int) -> None:
    """Long addresses stand on a line of their own, as RFC 5322 allows, and are read whole."""
    recipient = "a" * length + "@" + "b" * 60 + "." + "c" * 60 + ".example"
    raw = message(ENVELOPES.fill(replace(MAIL, recipient=recipient), CODE))
    assert str(email.message_from_bytes(raw, policy=default)["To"]) == recipient


def test_the_message_id_stays_over_retries_and_changes_with_the_code() -> None:
    """A server that drops repeats keeps one mail of a code, and drops no fresh code."""
    again = replace(MAIL, fence=9, attempt=9, life_left=1.0)
    fresh = replace(MAIL, code_id=CodeId("k1", uuid4()))
    ids = [sent(mail)["Message-ID"] for mail in (MAIL, again, fresh, replace(MAIL, id=uuid4()))]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_the_message_id_tells_no_id_of_the_database() -> None:
    """Mails are read by others than their owner."""
    mail = replace(MAIL, id=uuid4(), account=uuid4(), code_id=CodeId("k1", uuid4()))
    assert mail.code_id is not None
    raw = message(ENVELOPES.fill(mail, CODE))
    for number in (mail.id, mail.account, mail.code_id.number):
        assert number.hex.encode() not in raw
        assert str(number).encode() not in raw


@pytest.mark.parametrize(
    ("typed", "mailed"),
    [
        ("o'neil+tag@example.com", "o'neil+tag@example.com"),
        ("Ada@EXAMPLE.com", "Ada@EXAMPLE.com"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("ada@straße.example", "ada@xn--strae-oqa.example"),
        ('"a b"@example.com', '"a b"@example.com'),
        (r'"a\"b"@example.com', r'"a\"b"@example.com'),
        ("root@localhost", "root@localhost"),
    ],
)
def test_addresses_are_mailed_as_typed_with_their_domain_in_ascii(typed: str, mailed: str) -> None:
    """Only the domain has an ASCII form; the local part is the owner's."""
    assert ascii_address(typed) == mailed
    assert sent(replace(MAIL, recipient=typed))["To"].addresses[0].addr_spec == mailed


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "ada",
        "@example.com",
        "ada@",
        "ada@example.com\r\nBcc: eve@example.com",
        "ada@example.com\nX: y",
        "ada\r\n@example.com",
        "ada@example.com>\r\nRCPT TO:<eve@example.com",
        "ada@example.com, eve@example.com",
        "ada eve@example.com",
        "ada<eve@example.com",
        '"a\r\nb"@example.com',
        '"a"b"@example.com',
        "ädä@example.com",
        "ada@exa mple.com",
        "ada@[127.0.0.1]",
        "ada@-example.com",
        "ada@ex\x00ample.com",
        "ada@\u202eexample.com",
    ],
)
def test_what_is_no_address_never_reaches_a_server(typed: str) -> None:
    """Line breaks, second recipients and commands are refused; the reason does not repeat them."""
    with pytest.raises(Rejected) as caught:
        ENVELOPES.fill(replace(MAIL, recipient=typed), CODE)
    assert "example" not in str(caught.value)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_becomes_a_second_header_or_recipient(local: str, domain: str) -> None:
    """Whatever passes for an address is one address on one line."""
    try:
        address = ascii_address(f"{local}@{domain}")
    except NoAddress:
        return
    assert address.isascii()
    assert address.isprintable()
    parsed = sent(replace(MAIL, recipient=address))
    assert [one.addr_spec for one in parsed["To"].addresses] == [address]
    assert set(parsed.keys()) == set(sent().keys())


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [
        ("no-reply@localhost", "", "no-reply@localhost"),
        ("<no-reply@localhost>", "", "no-reply@localhost"),
        ("Ada's Shop <shop@example.com>", "Ada's Shop", "shop@example.com"),
        ('"Shop, Inc." <shop@example.com>', "Shop, Inc.", "shop@example.com"),
        ("Bücherei <post@bücher.example>", "Bücherei", "post@xn--bcher-kva.example"),
    ],
)
def test_the_sender_is_an_address_with_or_without_a_name(text: str, name: str, address: str) -> None:
    """Names with commas and umlauts reach the reader whole."""
    sender = Sender.parse(text)
    assert (sender.name, sender.address) == (name, address)
    parsed = sent(envelopes=Envelopes(sender, Wording(Settings())))
    assert parsed["From"].addresses[0].display_name == name


@pytest.mark.parametrize("text", ["", "Shop", "Shop <>", "a@b, c@d", "Shop <a@b> x", "a@b\r\nBcc: c@d", "Shop\n <a@b>"])
def test_a_bad_sender_stops_the_start(text: str) -> None:
    """The line names the setting."""
    with pytest.raises(BadSettings, match="VESTIBULE_MAIL_FROM"):
        Sender.parse(text)
