"""The mail catcher: what is sent to it can be read, whatever it is, and the port stays the same."""

from __future__ import annotations

import os
import smtplib
import socket
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from typing import TYPE_CHECKING

import pytest

from service.embedded.mail_catcher import (
    KEPT,
    MAIL_BYTES,
    PORTS,
    MailCatcher,
    keep_mail,
    list_mails,
    names,
    read_mail,
)
from tests.servers.embedded import kill, served

if TYPE_CHECKING:
    from pathlib import Path

    from service.embedded.mail_catcher import CaughtMail

BOTH = (
    b"From: us@example.com\r\nTo: other@example.com\r\nSubject: =?utf-8?b?R3LDvMOfZQ==?=\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: multipart/alternative; boundary="b"\r\n\r\n'
    b"--b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nK\xc3\xb6ln 123456\r\n"
    b"--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<b>123456</b>\r\n--b--\r\n"
)


def send(server: MailCatcher, subject: str, text: str = "1234\n") -> None:
    """Send one mail as any client would."""
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "us@example.com", "ann@example.com", subject
    mail.set_content(text)
    with smtplib.SMTP("127.0.0.1", port(server), timeout=10) as client:
        client.send_message(mail, to_addrs=["ann@example.com", "bob@example.com"])


def port(server: MailCatcher) -> int:
    """Return the port in its URL."""
    return int(server.url.rpartition(":")[2])


def kept(folder: Path, content: bytes, *recipients: str) -> CaughtMail:
    """Keep a mail and read it again."""
    mail = read_mail(folder, keep_mail(folder, list(recipients or ("ann@example.com",)), content))
    assert mail is not None
    return mail


def test_a_sent_mail_can_be_read(data_dir: Path) -> None:
    """It is there once the server has said so, with the recipients of the envelope, for its owner alone."""
    server = MailCatcher(data_dir)
    with served(server):
        send(server, "first")
        with pytest.raises((smtplib.SMTPResponseException, smtplib.SMTPServerDisconnected)):
            send(server, "too large", "x" * 70 + "\n" + ("y" * 70 + "\n") * (MAIL_BYTES // 70))
        send(server, "second")
        mails = list_mails(server.folder)
    assert [(mail.subject, mail.to, mail.text.strip()) for mail in mails] == [
        ("second", "ann@example.com, bob@example.com", "1234"),
        ("first", "ann@example.com, bob@example.com", "1234"),
    ]
    assert all(file.stat().st_mode & 0o077 == 0 for file in (server.folder, *server.folder.iterdir()))


def test_the_port_is_kept_unless_it_is_taken(data_dir: Path) -> None:
    """After a kill -9 too, and below the ports that the kernel gives to clients."""
    server = MailCatcher(data_dir)
    with served(server) as pid:
        first = port(server)
        kill(pid)
    with served(server):
        assert port(MailCatcher(data_dir)) == first
    assert first in PORTS
    with socket.create_server(("127.0.0.1", first)), served(server):
        assert port(server) != first
        send(server, "hello")


def test_it_defers_what_it_cannot_write_and_stops_while_a_client_is_connected(data_dir: Path) -> None:
    """Its sender is told to try again; a client that stays is disconnected."""
    server = MailCatcher(data_dir)
    with served(server) as pid, socket.create_connection(("127.0.0.1", port(server)), timeout=5) as client:
        server.folder.rmdir()
        server.folder.write_bytes(b"")  # a file in the folder's place: every write fails, for root too
        with pytest.raises(smtplib.SMTPDataError) as refusal:
            send(server, "hello")
        assert refusal.value.smtp_code == 452
        assert client.recv(100).startswith(b"220")
        os.kill(pid, server.stop_signal)
        assert client.recv(100) == b""


def test_both_parts_the_subject_and_the_envelope_are_read(tmp_path: Path) -> None:
    """`to` is what the envelope named, whatever the header says; a repr shows none of it."""
    mail = kept(tmp_path, BOTH)
    read = (mail.to, mail.subject, mail.text.strip(), (mail.html or "").strip())
    assert read == ("ann@example.com", "Grüße", "Köln 123456", "<b>123456</b>")
    assert timedelta(0) <= datetime.now(UTC) - mail.date < timedelta(minutes=1)
    assert "ann@" not in repr(mail)
    assert "123456" not in repr(mail)
    forged = kept(tmp_path, b"Subject: ours\r\n\r\nx", "ann@example.com\r\nSubject: theirs")
    assert (forged.to, forged.subject) == ("ann@example.com Subject: theirs", "ours")


def test_the_newest_are_kept_and_come_first(tmp_path: Path) -> None:
    """One more than are kept costs the first one; a page holds no more than is asked for."""
    subjects = ["first", *[""] * (KEPT - 1), "last"]
    ids = [keep_mail(tmp_path, ["ann@example.com"], f"Subject: {subject}\r\n\r\n".encode()) for subject in subjects]
    assert len(names(tmp_path)) == KEPT
    assert [read_mail(tmp_path, one) is None for one in (ids[0], ids[-1])] == [True, False]
    assert [mail.subject for mail in list_mails(tmp_path, 2)] == ["last", ""]
    assert list_mails(tmp_path, 0) == list_mails(tmp_path / "none") == []


def test_an_id_names_a_mail_or_nothing(tmp_path: Path) -> None:
    """An id from a URL reaches no other file."""
    (tmp_path / "up.lock").write_text("secret", encoding="ascii")
    for mail_id in ("../up.lock", "", "1", "x" * 29, "0" * 20 + "-0000000\n", "0" * 20 + "-00000000"):
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
def test_a_broken_mail_is_read_all_the_same(tmp_path: Path, content: bytes) -> None:
    """No content breaks the page, and no header carries a control character into it."""
    mail = kept(tmp_path, content)
    assert mail.subject.isprintable()
    (mail.subject + mail.text + (mail.html or "")).encode()
