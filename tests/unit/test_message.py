from __future__ import annotations

import email
import re
from dataclasses import replace
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.domain.mail import MailKind, Rejected
from service.mail.message import Message, Messages, Sender, ascii_address, available_locales, nearest
from service.mail.server import HttpProvider, SmtpServer, ehlo_name, parse
from service.mail.transport import check
from service.settings import Settings, SettingsError, load
from tests.fakes.mails import claimed

CODE = "012345"
MAIL = claimed()
LOCALES = ("en", "de")
URL = "https://join.example.com/auth"
MESSAGES = Messages(Settings(mail_from="Vestibule <no-reply@example.org>"))


def written(kind: MailKind = MailKind.CODE, locale: str = "en", **values: object) -> Message:
    """Write a mail with these settings."""
    messages = Messages(Settings.model_validate(values))
    return messages.write(replace(MAIL, kind=kind, locale=locale), CODE if kind is MailKind.CODE else None)


def parsed(message: Message) -> EmailMessage:
    """Return the message as its reader's program parses it."""
    read = email.message_from_bytes(message.encode(), policy=default)
    assert isinstance(read, EmailMessage)
    return read


def body(message: EmailMessage, form: str) -> str:
    """Return one body of a parsed message."""
    part = message.get_body((form,))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


# -- the message


def test_a_mail_has_what_mail_servers_look_for() -> None:
    """Sender, recipient, date, id, language, and the marks of a mail that a machine wrote."""
    read = parsed(MESSAGES.write(MAIL, CODE))
    assert str(read["From"]) == "Vestibule <no-reply@example.org>"
    assert str(read["To"]) == "ada@example.com"
    assert read["Date"].datetime.tzinfo is not None
    assert read["Message-ID"].endswith("@example.org>")
    assert (read["Auto-Submitted"], read["Content-Language"]) == ("auto-generated", "en")
    assert [part.get_content_type() for part in read.iter_parts()] == ["text/plain", "text/html"]


@given(code=st.from_regex(r"[0-9]{4,10}", fullmatch=True), locale=st.sampled_from(LOCALES))
def test_every_code_stands_alone_on_a_line_of_a_mail_in_ascii(code: str, locale: str) -> None:
    """Mails of one language share a form; what a reader decodes is the wording with this very code, in no header."""
    message = MESSAGES.write(replace(MAIL, locale=locale), code)
    raw, read = message.encode(), parsed(message)
    assert f"\r\n{code}\r\n".encode() in raw
    assert raw.isascii()
    assert not any(secret in repr(message) for secret in (code, MAIL.recipient))
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    assert body(read, "plain") == message.text
    assert body(read, "html").rstrip() == (message.html or "").rstrip()
    assert message.text.splitlines().count(code) == message.text.count(code) == 1
    assert code in (message.html or "")
    assert code not in message.subject


@pytest.mark.parametrize("html", ["<p>{{ code[:3] }} {{ code[3:] }}</p>", "<p>{{ code }} or call 947206</p>"])
def test_a_template_that_does_more_with_the_code_is_right_too(tmp_path: Path, html: str) -> None:
    """Grouped digits, and a number that looks like a sample code, are rendered for each mail."""
    (tmp_path / "code.en.html").write_text(html)
    messages = Messages(Settings(mail_templates=tmp_path))
    expected = html.replace("{{ code }}", CODE).replace("{{ code[:3] }} {{ code[3:] }}", "012 345")
    assert body(parsed(messages.write(MAIL, CODE)), "html").rstrip() == expected


def test_the_message_id_is_the_same_for_every_try_and_tells_no_id() -> None:
    """A server that drops repeats keeps one mail of a code; a new code is a new mail. Others may read the mail."""
    mail = replace(MAIL, id=uuid4(), account=uuid4())
    again = replace(mail, fence=9, tries=9, life_left=1.0)
    ids = [MESSAGES.write(one, CODE).message_id for one in (mail, again, replace(mail, id=uuid4()))]
    assert ids[0] == ids[1] != ids[2]
    raw = MESSAGES.write(mail, CODE).encode()
    assert not any(text.encode() in raw for one in (mail.id, mail.account) for text in (one.hex, str(one)))


def test_a_test_mail_names_the_service() -> None:
    """`vestibule check --send-to` sends a mail that nobody takes for a code."""
    message = MESSAGES.test("ada@bücher.example", uuid4())
    assert message.recipient == "ada@xn--bcher-kva.example"
    assert str(parsed(message)["Subject"]) == "Test mail from Vestibule"
    with pytest.raises(Rejected):
        MESSAGES.test("nobody", uuid4())


# -- addresses


@pytest.mark.parametrize("length", [1, 57, 58, 59, 60, 64])
def test_a_recipient_of_any_length_is_one_header(length: int) -> None:
    """Long addresses stand on a line of their own, as RFC 5322 allows, and are read whole."""
    recipient = "a" * length + "@" + "b" * 60 + "." + "c" * 60 + ".example"
    assert str(parsed(MESSAGES.write(replace(MAIL, recipient=recipient), CODE))["To"]) == recipient


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
    message = MESSAGES.write(replace(MAIL, recipient=typed), CODE)
    assert message.recipient == mailed
    assert parsed(message)["To"].addresses[0].addr_spec == mailed


NO_ADDRESSES = {
    "no part or only one": ["", "ada", "@example.com", "ada@"],
    "a line break": ["ada@example.com\r\nBcc: eve@example.com", "ada\r\n@example.com", '"a\r\nb"@example.com'],
    "a command": ["ada@example.com>\r\nRCPT TO:<eve@example.com"],
    "a second recipient": ["ada@example.com, eve@example.com", "ada<eve@example.com"],
    "another local part": ['"a"b"@example.com', "ädä@example.com"],
    "no domain": ["ada@[127.0.0.1]", "ada@-example.com", "ada@ex\x00ample.com", "ada@\u202eexample.com"],
}


@pytest.mark.parametrize("typed", [text for texts in NO_ADDRESSES.values() for text in texts])
def test_what_is_no_address_never_reaches_a_server(typed: str) -> None:
    """Line breaks, second recipients and commands are refused; the reason does not repeat them."""
    with pytest.raises(Rejected) as caught:
        MESSAGES.write(replace(MAIL, recipient=typed), CODE)
    assert "example" not in str(caught.value)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_becomes_a_second_header_or_recipient(local: str, domain: str) -> None:
    """What passes for an address is one address on one line."""
    address = ascii_address(f"{local}@{domain}")
    if address is None:
        return
    assert address.isascii()
    assert address.isprintable()
    read = parsed(MESSAGES.write(replace(MAIL, recipient=address), CODE))
    assert [one.addr_spec for one in read["To"].addresses] == [address]
    assert set(read.keys()) == set(parsed(MESSAGES.write(MAIL, CODE)).keys())


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
    assert parsed(written(mail_from=text))["From"].addresses[0].display_name == name


@pytest.mark.parametrize("text", ["", "Shop", "Shop <>", "a@b, c@d", "Shop <a@b> x", "a@b\r\nBcc: c@d", "Shop\n <a@b>"])
def test_a_bad_sender_stops_the_start(text: str) -> None:
    """The line names the setting."""
    with pytest.raises(SettingsError, match="VESTIBULE_MAIL_FROM"):
        Sender.parse(text)


# -- the wording


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("kind", list(MailKind))
def test_every_built_in_mail_is_whole(kind: MailKind, locale: str) -> None:
    """Nothing else looks like a code, links come with PUBLIC_URL alone and keep its path, nothing is loaded."""
    without, linked = written(kind, locale), written(kind, locale, public_url=URL)
    assert without.html is not None
    assert linked.html is not None
    assert "http" not in without.text + without.html
    assert URL in linked.text.splitlines()
    assert f'href="{URL}"' in linked.html
    found = set(re.findall(r"\b\d{4,10}\b", f"{linked.subject}\n{linked.text}\n{linked.html}"))
    assert found == ({CODE} if kind is MailKind.CODE else set())
    assert unclosed(linked.html) == []
    assert not re.search(r"\b(src|srcset|background)=", linked.html)
    assert f'<html lang="{locale}">' in linked.html
    assert "color-scheme" in linked.html
    [preheader] = re.findall(r"mso-hide:all;\">(.+?)</div>", linked.html, re.DOTALL)
    assert CODE not in preheader


def unclosed(html: str) -> list[str]:
    """Return the tags that are left open; each other one must be closed before those around it."""
    left: list[str] = []
    for slash, name in re.findall(r"<(/?)([a-z0-9]+)", re.sub(r"<!--.*?-->", "", html, flags=re.DOTALL)):
        if slash:
            assert left.pop() == name
        elif name not in {"meta", "br", "img", "link"}:
            left.append(name)
    return left


@pytest.mark.parametrize(
    ("locale", "valid"),
    [
        ("en", {60: "valid for 1 minute after", 120: "valid for 2 minutes after", 90: "valid for 90 seconds after"}),
        ("de", {60: "gilt eine Minute ab", 120: "gilt 2 Minuten ab", 90: "gilt 90 Sekunden ab"}),
    ],
)
def test_the_life_of_the_code_is_said_as_a_person_would(locale: str, valid: dict[int, str]) -> None:
    """In minutes where they are whole, in text and HTML alike."""
    for seconds, words in valid.items():
        message = written(locale=locale, code_ttl_seconds=seconds)
        assert words in message.text
        assert words in (message.html or "")


@pytest.mark.parametrize(
    ("asked", "served"),
    [("de", "de"), ("de-AT", "de"), ("DE_ch", "de"), ("de-Latn-AT", "de"), ("fr", "en"), ("", "en"), ("-", "en")],
)
def test_a_region_is_served_by_its_language_and_an_unknown_one_by_english(asked: str, served: str) -> None:
    """The look-up drops subtags from the end and never fails."""
    assert nearest(asked, LOCALES) == written(locale=asked).locale == served


def test_a_folder_of_the_operator_replaces_single_templates_and_adds_languages(tmp_path: Path) -> None:
    """The rest stays built in; a language without HTML goes out as text."""
    assert available_locales(Settings()) == LOCALES
    files = {
        ".hidden": "",
        "README.md": "",
        "code.en.txt": "Subject: Hi\r\n\r\n{{ code }}\r\n",
        "code.de.html": "<p>{{ site }} {{ code }}</p>",
        "code.fr.txt": "Subject: Votre code\n\n{{ code }}\n",
        "notice.fr.txt": "Subject: Avis\n\nRien.\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    sender = '"A & <B>" <a@b>'
    assert available_locales(Settings(mail_templates=tmp_path)) == ("en", "de", "fr")
    english, german, french = (
        written(locale=locale, mail_templates=tmp_path, mail_from=sender) for locale in ("en", "de", "fr-CA")
    )
    assert (english.subject, english.text) == ("Hi", f"{CODE}\n")
    assert english.html == written(mail_from=sender).html
    assert german.html == f"<p>A &amp; &lt;B&gt; {CODE}</p>"
    assert "A & <B>" in german.subject
    assert (french.locale, french.subject, french.html) == ("fr", "Votre code", None)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("code.en.txt", "Subject: x\n\n{{ code }}\n{{ name }}", "asks for name; there is"),
        ("code.en.txt", "{{ code }}\n", "must begin with a line `Subject"),
        ("code.en.txt", "Subject:\n\n{{ code }}\n", "must begin with a line `Subject"),
        ("code.en.txt", "Subject: {{ code }}\n\n{{ code }}\n", "must not show the code in its subject"),
        ("code.en.txt", "Subject: x\n\nIt is {{ code }}.\n", "alone on a line"),
        ("code.en.txt", "Subject: x\n\n{% if public_url %}\n{{ code }}\n{% endif %}", "alone on a line"),
        ("code.en.txt", "Subject: x\n\n{% if %}", "Expected an expression"),
        ("code.en.html", "<p>{{ code", "unexpected end of template"),
        ("code.en.html", "{% include 'nothing.html' %}", "nothing.html"),
        ("code.en.html", "{{ seconds.minutes }}", "no attribute 'minutes'"),
        ("code.fr.txt", "Subject: x\n\n{{ code }}\n", "needs notice.fr.txt"),
        ("cod.en.txt", "Subject: x", "is no template"),
    ],
)
def test_a_template_that_could_not_become_a_mail_stops_the_start(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    """One line names the setting, the file and what to mend."""
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingsError) as caught:
        check(Settings(mail_templates=tmp_path))
    line = str(caught.value)
    assert line.startswith(f"VESTIBULE_MAIL_TEMPLATES: {name} ")
    assert words in line
    assert "\n" not in line


def test_a_folder_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    """A typo in the path does not quietly bring the built-in mails back."""
    with pytest.raises(SettingsError, match=r"VESTIBULE_MAIL_TEMPLATES: cannot read .*/nowhere: No such file"):
        check(Settings(mail_templates=tmp_path / "nowhere"))


# -- MAIL_URL and the EHLO name


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://mail", SmtpServer("mail", 25, "none")),
        ("smtp://127.0.0.1:2525/", SmtpServer("127.0.0.1", 2525, "none")),
        ("smtp+starttls://mail", SmtpServer("mail", 587, "starttls")),
        ("smtps://[::1]:4650", SmtpServer("::1", 4650, "tls")),
        ("smtps://us%40er:p%2Fa%23s%3As@mail", SmtpServer("mail", 465, "tls", "us@er", "p/a#s:s")),
        ("https://api.example/v1/mail?x=1", HttpProvider("https://api.example/v1/mail?x=1")),
        ("http://api.example", HttpProvider("http://api.example/")),
        ("https://me:to%40ken@api.example:8443/m", HttpProvider("https://api.example:8443/m", "me", "to@ken")),
        ("https://token@api.example/m", HttpProvider("https://api.example/m", None, "token")),
        ("https://:token@[::1]:90/m", HttpProvider("https://[::1]:90/m", None, "token")),
    ],
)
def test_every_form_of_mail_url_is_read(url: str, server: SmtpServer | HttpProvider) -> None:
    """Hosts, default ports and percent-decoded credentials, which no repr shows."""
    assert parse(url) == server
    check(load({"VESTIBULE_MAIL_URL": url}))
    assert "hidden" not in repr(parse("smtps://hidden:hidden@mail"))
    assert "hidden" not in repr(parse("https://hidden:hidden@mail/hidden"))


BAD_URLS = ["mail:25", "imap://mail", "smtp://", "smtp://user:secret@", "smtp://mail:port", "smtp://mail:99999"]
BAD_URLS += ["smtp://user:se/cret@mail", "smtp://user:se#cret@mail", "smtp://mail/path", "smtp://ma il"]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_mail_url_stops_the_start_without_showing_its_password(url: str) -> None:
    """The line names the setting and repeats nothing of the value."""
    with pytest.raises(SettingsError) as caught:
        parse(url)
    assert str(caught.value).startswith("VESTIBULE_MAIL_URL: ")
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"mail_ehlo": "mx.example.com", "public_url": URL}, "mx.example.com"),
        ({"public_url": "https://accounts.example.com:8443/auth"}, "accounts.example.com"),
        ({"public_url": "https://bücher.example"}, "xn--bcher-kva.example"),
        ({"public_url": "http://192.0.2.7:8000"}, "[192.0.2.7]"),
        ({"public_url": "http://[2001:db8::1]:8000"}, "[IPv6:2001:db8::1]"),
        ({"mail_ehlo": "[192.0.2.7]"}, "[192.0.2.7]"),
        ({"public_url": "https://a..b"}, "example.org"),
        ({}, "example.org"),
    ],
)
def test_the_name_for_ehlo_is_never_the_machines_own(values: dict[str, object], name: str) -> None:
    """MAIL_EHLO, else the host of PUBLIC_URL, else the sender's domain; in ASCII, addresses in brackets."""
    assert ehlo_name(Settings.model_validate(values), "example.org") == name
