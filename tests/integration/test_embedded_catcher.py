from __future__ import annotations

import os
import smtplib
import socket
from email.message import EmailMessage
from typing import TYPE_CHECKING

from service.embedded.caught_mails import list_mails
from service.embedded.mail_catcher import FIRST_PORT, MAIL_BYTES, PORTS, MailCatcher
from tests.servers.running import kill, served

if TYPE_CHECKING:
    from pathlib import Path


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


def test_a_sent_mail_can_be_read(data_dir: Path) -> None:
    """It is there once the server has said so, with the recipients of the envelope, for its owner alone."""
    server = MailCatcher(data_dir)
    with served(server):
        send(server, "first")
        send(server, "second")
        mails = list_mails(server.folder)
    server.close()
    assert [(mail.subject, mail.to, mail.text.strip()) for mail in mails] == [
        ("second", "ann@example.com, bob@example.com", "1234"),
        ("first", "ann@example.com, bob@example.com", "1234"),
    ]
    assert all(file.stat().st_mode & 0o077 == 0 for file in (server.folder, *server.folder.iterdir()))


def test_a_killed_catcher_keeps_its_port_and_loses_no_connection(data_dir: Path) -> None:
    """Who connects while it is away waits in the socket and is served by the next one."""
    server = MailCatcher(data_dir)
    with served(server) as pid:
        before = server.url
        kill(pid)
        with socket.create_connection(("127.0.0.1", port(server)), timeout=10) as waiting, served(server):
            assert waiting.recv(3) == b"220"
        assert server.url == before
    server.close()


def test_it_stops_while_somebody_is_connected(data_dir: Path) -> None:
    """A client that stays is hung up on, and nobody waits for it."""
    server = MailCatcher(data_dir)
    with served(server) as pid, socket.create_connection(("127.0.0.1", port(server)), timeout=5) as client:
        assert client.recv(100).startswith(b"220")
        os.kill(pid, server.stop_signal)
        assert client.recv(100) == b""
    server.close()


def test_the_port_is_kept_over_a_restart_of_everything(data_dir: Path) -> None:
    """A new object on the same folder listens where the last one did, below the ports that clients are given."""
    urls = []
    for _ in range(2):
        server = MailCatcher(data_dir)
        with served(server):
            urls.append(server.url)
        server.close()
    assert urls[0] == urls[1]
    assert FIRST_PORT <= port(server) < FIRST_PORT + PORTS


def test_a_taken_port_is_left_to_whoever_has_it(data_dir: Path) -> None:
    """Where another program listens on the port of the last start, another one is found."""
    first, second = MailCatcher(data_dir), MailCatcher(data_dir)
    with served(first):
        taken = port(first)
    with served(second):  # `first` still listens
        assert port(second) != taken
        send(second, "hello")
    first.close()
    second.close()


def test_a_mail_too_large_is_refused(data_dir: Path) -> None:
    """The catcher keeps no mail beyond its bound, and goes on."""
    server = MailCatcher(data_dir)
    with served(server):
        try:
            send(server, "large", "x" * 70 + "\n" + ("y" * 70 + "\n") * (MAIL_BYTES // 70))
        except smtplib.SMTPResponseException as refusal:
            assert refusal.smtp_code == 552  # noqa: PT017 - which of two exceptions comes depends on the client
        send(server, "small")
        assert [mail.subject for mail in list_mails(server.folder)] == ["small"]
    server.close()


def test_a_full_disk_puts_mails_off(data_dir: Path) -> None:
    """When a mail cannot be written, its sender is told to come again."""
    server = MailCatcher(data_dir)
    with served(server):
        server.folder.rmdir()
        server.folder.write_bytes(b"")  # a file in the folder's place: every write fails, for root too
        try:
            send(server, "hello")
        except smtplib.SMTPDataError as refusal:
            assert refusal.smtp_code == 452  # noqa: PT017 - as above
        else:
            raise AssertionError("taken without having been written")
    server.close()
