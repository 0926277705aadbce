from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from service.embedded.caught_mails import KEPT, keep_mail, list_mails, names, read_mail

if TYPE_CHECKING:
    from pathlib import Path

    from service.embedded.caught_mails import CaughtMail

BOTH = (
    b"From: us@example.com\r\nTo: other@example.com\r\nSubject: =?utf-8?b?R3LDvMOfZQ==?=\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: multipart/alternative; boundary="b"\r\n\r\n'
    b"--b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nK\xc3\xb6ln 123456\r\n"
    b"--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<b>123456</b>\r\n--b--\r\n"
)


def kept(folder: Path, content: bytes, *recipients: str) -> CaughtMail:
    """Keep a mail and read it again."""
    mail = read_mail(folder, keep_mail(folder, list(recipients or ("ann@example.com",)), content))
    assert mail is not None
    return mail


def test_both_parts_the_subject_and_the_envelope_are_read(tmp_path: Path) -> None:
    """`to` is whom the envelope named, whatever the header says."""
    mail = kept(tmp_path, BOTH)
    assert (mail.to, mail.subject, mail.text.strip(), (mail.html or "").strip()) == (
        "ann@example.com",
        "Grüße",
        "Köln 123456",
        "<b>123456</b>",
    )
    assert timedelta(0) <= datetime.now(UTC) - mail.date < timedelta(minutes=1)


def test_the_newest_come_first_and_no_more_than_asked_for(tmp_path: Path) -> None:
    """Three mails, a page of two."""
    for number in range(3):
        keep_mail(tmp_path, ["ann@example.com"], f"Subject: {number}\r\n\r\n".encode())
    assert [mail.subject for mail in list_mails(tmp_path, 2)] == ["2", "1"]
    assert list_mails(tmp_path, 0) == []


def test_no_folder_holds_no_mails(tmp_path: Path) -> None:
    """Nothing was caught yet."""
    assert list_mails(tmp_path / "none") == []


def test_the_oldest_are_dropped(tmp_path: Path) -> None:
    """One more than are kept costs the first one."""
    first = keep_mail(tmp_path, ["ann@example.com"], b"\r\n")
    for _ in range(KEPT):
        last = keep_mail(tmp_path, ["ann@example.com"], b"\r\n")
    assert len(names(tmp_path)) == KEPT
    assert read_mail(tmp_path, first) is None
    assert read_mail(tmp_path, last) is not None


@pytest.mark.parametrize("mail_id", ["../up.lock", "", "1", "x" * 29, "0" * 20 + "-0000000\n", "0" * 20 + "-00000000"])
def test_an_id_names_a_mail_or_nothing(tmp_path: Path, mail_id: str) -> None:
    """An id from a URL reaches no other file."""
    (tmp_path / "up.lock").write_text("secret", encoding="ascii")
    assert read_mail(tmp_path / "mails", mail_id) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no header at all",
        b"Subject: =?utf-8?q?a=0D=0ABcc=3A_b?=\r\n\r\nx",
        b"Subject: a\x00b\r\n\r\nx",
        b"Subject: =?nowhere?b?AAAA?=\r\n\r\nx",
        b"Content-Type: text/plain; charset=nowhere\r\n\r\n\xff\xfe",
        b"Content-Type: text/plain; charset=utf-8\r\n\r\n\xff\xfe",
        b"Content-Type: multipart/mixed; boundary=\r\n\r\nx",
        b"Content-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\n",
        b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nx",
        b"Content-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!!",
        b"Content-Type: ;;;\r\nSubject: \xff\r\n\r\nx",
    ],
)
def test_what_is_no_proper_mail_is_read_all_the_same(tmp_path: Path, content: bytes) -> None:
    """No content breaks the page, and no header carries a control character into it."""
    mail = kept(tmp_path, content)
    assert mail.subject.isprintable()
    (mail.subject + mail.text + (mail.html or "")).encode()


def test_a_recipient_adds_no_header(tmp_path: Path) -> None:
    """A line break in an address stays in the address."""
    mail = kept(tmp_path, b"Subject: ours\r\n\r\nx", "ann@example.com\r\nSubject: theirs")
    assert (mail.to, mail.subject) == ("ann@example.com Subject: theirs", "ours")


def test_a_mail_in_a_log_shows_nothing(tmp_path: Path) -> None:
    """Its repr holds neither address nor code."""
    text = repr(kept(tmp_path, BOTH))
    assert "ann@" not in text
    assert "123456" not in text
