from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import anyio
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink
from aiosmtpd.smtp import SMTP

from actors.domain.code import CodeId
from actors.domain.mail import ClaimedMail, Deferred, MailKind, Rejected, Unreached
from service.mailer.postman import open_postman
from service.mailer.smtp import CONNECTIONS
from service.settings import Settings
from tests.servers.smtp import SmtpServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers.smtp import Stage

CODE = "012345"


def mail(recipient: str = "ada@example.com", locale: str = "en") -> ClaimedMail:
    """Return a mail that was claimed just now."""
    return ClaimedMail(
        id=uuid4(),
        fence=1,
        attempt=1,
        kind=MailKind.CODE,
        account=UUID(int=2),
        code_id=CodeId("k1", uuid4()),
        recipient=recipient,
        locale=locale,
        life_left=900.0,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def send(url: str, *mails: ClaimedMail, between: Callable[[], None] = lambda: None) -> list[Exception | None]:
    """Send one after the other through one postman, and return how each ended."""
    outcomes: list[Exception | None] = []

    async def body() -> None:
        async with open_postman(Settings(mail_from="Shop <shop@example.com>"), url) as postman:
            for one in mails:
                try:
                    await postman.send(one, CODE)
                except (Deferred, Rejected) as error:
                    outcomes.append(error)
                else:
                    outcomes.append(None)
                await anyio.to_thread.run_sync(between)

    anyio.run(body, backend="asyncio")
    return outcomes


def test_mails_leave_one_after_the_other_over_one_connection(smtp_catcher: SmtpServer) -> None:
    """A connection, with its hand-shakes, serves more than one mail."""
    assert send(smtp_catcher.url, mail(), mail(), mail()) == [None] * 3
    received = smtp_catcher.wait_for(3)
    assert smtp_catcher.connections == 1
    assert {(one.sender, one.recipients) for one in received} == {("shop@example.com", ("ada@example.com",))}
    assert all(CODE in one.text.splitlines() for one in received)


@pytest.mark.parametrize(
    ("typed", "mailed"),
    [
        ("o'neil+tag@example.com", "o'neil+tag@example.com"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ('"ada lovelace"@example.com', '"ada lovelace"@example.com'),
    ],
)
def test_the_envelope_names_the_recipient_as_servers_know_it(smtp_catcher: SmtpServer, typed: str, mailed: str) -> None:
    """Apostrophes, plus tags, umlauts and quotes reach RCPT whole."""
    assert send(smtp_catcher.url, mail(typed)) == [None]
    [received] = smtp_catcher.wait_for(1)
    assert received.recipients == (mailed,)


def test_a_line_break_in_an_address_never_reaches_the_server(smtp_catcher: SmtpServer) -> None:
    """A second recipient cannot be smuggled in, and no connection is made for the try."""
    [outcome] = send(smtp_catcher.url, mail("ada@example.com>\r\nRCPT TO:<eve@example.com"))
    assert isinstance(outcome, Rejected)
    assert (smtp_catcher.mails, smtp_catcher.connections) == ([], 0)


def test_a_repeat_after_a_4xx_carries_the_same_message_id(smtp_catcher: SmtpServer) -> None:
    """The first answer defers with its codes alone; the second try is the same mail."""
    smtp_catcher.answer("451 4.3.0 ada@example.com is busy")
    smtp_catcher.answer("450 4.2.0 greylisted", at="RCPT")
    same = mail()
    first, second, third = send(smtp_catcher.url, same, same, same)
    assert isinstance(first, Deferred)
    assert first.reason == "450 4.2.0 at RCPT"
    assert isinstance(second, Deferred)
    assert second.reason == "451 4.3.0 at DATA"
    assert third is None
    smtp_catcher.hang_up()
    [lost] = send(smtp_catcher.url, same)
    assert isinstance(lost, Deferred)
    ids = {one.message["Message-ID"] for one in smtp_catcher.wait_for(2)}
    assert len(ids) == 1


@pytest.mark.parametrize("stage", ["RCPT", "DATA"])
def test_a_5xx_about_the_mail_rejects_it_and_the_connection_serves_the_next(
    smtp_catcher: SmtpServer, stage: Stage
) -> None:
    """One bad address costs no hand-shake for the others."""
    smtp_catcher.answer("550 5.1.1 ada@example.com unknown", at=stage)
    first, second = send(smtp_catcher.url, mail(), mail())
    assert isinstance(first, Rejected)
    assert first.reason == f"550 5.1.1 at {stage}"
    assert second is None
    assert smtp_catcher.connections == 1


@pytest.mark.parametrize(
    ("reply", "stage"), [("530 5.7.0 log in first", "RCPT"), ("550 5.7.1 not this sender", "MAIL")]
)
def test_a_5xx_that_an_operator_can_mend_defers(smtp_catcher: SmtpServer, reply: str, stage: Stage) -> None:
    """A sender or log-in that the server does not like is no fault of the mail."""
    smtp_catcher.answer(reply, at=stage)
    [outcome] = send(smtp_catcher.url, mail())
    assert isinstance(outcome, Deferred)


def test_a_wrong_password_defers_and_shows_none() -> None:
    """535 is mended in the settings, not by burying mails."""
    with SmtpServer(login=("user", "right")) as server:
        [outcome] = send(server.url.replace("right", "wrong-secret"), mail())
        assert isinstance(outcome, Deferred)
        assert outcome.reason == "535 5.7.8 at connect"
        assert send(server.url, mail()) == [None]


@pytest.mark.parametrize("stage", ["MAIL", "RCPT"])
def test_a_connection_that_broke_before_the_content_is_replaced_at_once(smtp_catcher: SmtpServer, stage: Stage) -> None:
    """A mail does not wait a back-off because the server has cut an old connection."""
    outcomes = send(
        smtp_catcher.url,
        mail(),
        mail(),
        between=lambda: None if smtp_catcher.connections > 1 else smtp_catcher.hang_up(at=stage),
    )
    assert outcomes == [None, None]
    assert (len(smtp_catcher.wait_for(2)), smtp_catcher.connections) == (2, 2)


def test_a_421_on_an_old_connection_is_answered_with_a_new_one(smtp_catcher: SmtpServer) -> None:
    """Servers close connections politely, too."""
    turns = iter([True, False])
    outcomes = send(
        smtp_catcher.url,
        mail(),
        mail(),
        between=lambda: smtp_catcher.answer("421 4.3.2 closing", at="MAIL") if next(turns) else None,
    )
    assert outcomes == [None, None]
    assert smtp_catcher.connections == 2


def test_a_server_that_is_away_defers(smtp_catcher: SmtpServer) -> None:
    """Before and after it was reached; back again it takes the mail."""
    smtp_catcher.refuse()
    [outcome] = send(smtp_catcher.url, mail())
    assert isinstance(outcome, Unreached)
    assert outcome.reason == "SMTPConnectError at connect"
    smtp_catcher.accept()
    assert send(smtp_catcher.url, mail()) == [None]


def test_a_server_that_was_looked_for_takes_the_next_mail_over_that_connection(smtp_catcher: SmtpServer) -> None:
    """Looking asks for nothing but a connection, and says whether it was had."""

    async def body() -> None:
        async with open_postman(Settings(), smtp_catcher.url) as postman:
            smtp_catcher.refuse()
            with pytest.raises(Unreached):
                await postman.reach()
            smtp_catcher.accept()
            await postman.reach()
            assert (smtp_catcher.connections, smtp_catcher.mails) == (1, [])
            await postman.send(mail(), CODE)

    anyio.run(body, backend="asyncio")
    assert (smtp_catcher.connections, len(smtp_catcher.mails)) == (1, 1)


def test_no_more_connections_are_opened_than_agreed(smtp_catcher: SmtpServer) -> None:
    """Thirty mails at once share them."""

    async def body() -> None:
        async with open_postman(Settings(), smtp_catcher.url) as postman, anyio.create_task_group() as group:
            for _ in range(30):
                group.start_soon(postman.send, mail(), CODE)

    anyio.run(body, backend="asyncio")
    assert len(smtp_catcher.wait_for(30)) == 30
    assert smtp_catcher.connections <= CONNECTIONS


class StartTls(Controller):
    """A server that takes mails after STARTTLS only."""

    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        self.context = context
        super().__init__(Sink(), hostname="127.0.0.1", port=port)

    def factory(self) -> SMTP:
        """Build one connection."""
        return SMTP(self.handler, hostname="localhost", tls_context=self.context, require_starttls=True)


def certificate(folder: Path) -> Path:
    """Make a certificate for localhost that vouches for itself."""
    path = folder / "server.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*make, "-keyout", str(path), "-out", str(folder / "cert.pem")], check=True, capture_output=True)
    path.write_text(path.read_text() + (folder / "cert.pem").read_text())
    return path


SENDING = """
import sys
from tests.integration.test_mailer_smtp import mail, send
print(*[getattr(outcome, "reason", "accepted") for outcome in send(sys.argv[1], mail())])
"""


def sent_elsewhere(url: str, **environment: str) -> str:
    """Send in a process of its own, since OpenSSL reads SSL_CERT_FILE from the real environment."""
    result = subprocess.run(
        [sys.executable, "-c", SENDING, url],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


@pytest.mark.parametrize("scheme", ["smtp+starttls", "smtps"])
def test_an_encrypted_way_is_taken_only_to_a_server_that_is_trusted(tmp_path: Path, scheme: str) -> None:
    """Trust comes from the system or SSL_CERT_FILE; without it the mail is deferred, never sent in the clear."""
    pem = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if scheme == "smtps":
        server = Controller(Sink(), hostname="127.0.0.1", port=port, ssl_context=context)
    else:
        server = StartTls(context, port)
    server.start()
    try:
        url = f"{scheme}://localhost:{port}"
        assert sent_elsewhere(url, SSL_CERT_FILE=str(tmp_path / "cert.pem")) == "accepted"
        assert sent_elsewhere(url).endswith("at connect")
    finally:
        server.stop()


def test_starttls_is_never_skipped(smtp_catcher: SmtpServer) -> None:
    """A server that does not offer it, or somebody in between who hides it, gets no mail."""
    [outcome] = send(smtp_catcher.url.replace("smtp://", "smtp+starttls://"), mail())
    assert isinstance(outcome, Deferred)
    assert outcome.reason == "SMTPException at connect"
    assert smtp_catcher.mails == []
