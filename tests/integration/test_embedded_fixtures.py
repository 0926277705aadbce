"""What the other tests rely on: fresh servers for each test, and a mail server that misbehaves on demand."""

from __future__ import annotations

import smtplib
import socket
from email.message import EmailMessage
from threading import Thread
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis

if TYPE_CHECKING:
    from tests.servers.smtp import SmtpServer

WRITE = "CREATE TABLE left_behind ()"
TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"


@pytest.mark.parametrize("_turn", range(2))
def test_each_test_has_a_migrated_database_of_its_own(database_url: str, _turn: int) -> None:
    """A table that the first turn leaves is not there in the second, what the migrations make is in both."""
    with psycopg.connect(database_url) as connection:
        tables = {row[0] for row in connection.execute(TABLES)}
        connection.execute(WRITE)
    assert "schema_migrations" in tables
    assert "left_behind" not in tables


@pytest.mark.parametrize("_turn", range(2))
def test_each_test_has_an_empty_redis(redis_url: str, _turn: int) -> None:
    """A key that the first turn leaves is not there in the second."""
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")


def send(server: SmtpServer, recipient: str = "ann@example.com", timeout: float = 5.0) -> None:
    """Send one mail as any client would."""
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "us@example.com", recipient, "hello"
    mail.set_content("a text\n")
    with smtplib.SMTP("127.0.0.1", server.port, timeout=timeout) as client:
        client.send_message(mail)


def test_a_mail_is_kept_with_its_envelope_and_text(smtp_catcher: SmtpServer) -> None:
    """What was sent can be read."""
    send(smtp_catcher)
    (mail,) = smtp_catcher.wait_for(1)
    assert (mail.recipients, mail.message["Subject"], mail.text) == (("ann@example.com",), "hello", "a text\n")


def test_a_reply_is_given_as_often_as_asked(smtp_catcher: SmtpServer) -> None:
    """Two mails are put off, the third is taken."""
    smtp_catcher.answer("451 4.3.0 later", times=2)
    for _ in range(2):
        with pytest.raises(smtplib.SMTPDataError) as caught:
            send(smtp_catcher)
        assert caught.value.smtp_code == 451
    send(smtp_catcher)
    assert len(smtp_catcher.mails) == 1


def test_a_recipient_is_refused(smtp_catcher: SmtpServer) -> None:
    """A 550 at RCPT reaches the client as a refused recipient."""
    smtp_catcher.answer("550 5.1.1 nobody", at="RCPT")
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        send(smtp_catcher)


def test_a_stalled_mail_times_out_or_goes_on(smtp_catcher: SmtpServer) -> None:
    """A stalled server answers nobody until it is told to go on; then the mail is there."""
    smtp_catcher.stall()
    with pytest.raises(smtplib.SMTPServerDisconnected, match="timed out"):
        send(smtp_catcher, timeout=0.2)
    smtp_catcher.stall()
    client = Thread(target=send, args=(smtp_catcher, "bob@example.com"))
    client.start()
    smtp_catcher.go_on()
    client.join(5)
    assert ("bob@example.com",) in [mail.recipients for mail in smtp_catcher.wait_for(1)]


def test_an_answer_is_lost(smtp_catcher: SmtpServer) -> None:
    """The mail is taken, and the client learns nothing of it."""
    smtp_catcher.hang_up()
    with pytest.raises(smtplib.SMTPServerDisconnected):
        send(smtp_catcher)
    assert len(smtp_catcher.wait_for(1)) == 1


def test_a_refusing_server_comes_back_on_its_port(smtp_catcher: SmtpServer) -> None:
    """Connections are refused in between, and the address stays good."""
    smtp_catcher.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", smtp_catcher.port), timeout=1)
    smtp_catcher.accept()
    send(smtp_catcher)
    assert len(smtp_catcher.mails) == 1
