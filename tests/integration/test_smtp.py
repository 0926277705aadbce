from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import pytest

from actors.domain.mail import ClaimedMail, Deferred, Rejected, ServerUnavailable
from service.mail.smtp import CONNECTIONS
from tests.fakes.mails import claimed
from tests.integration.conftest import with_transport
from tests.servers.listener import vouch_for_ourselves
from tests.servers.smtp import SmtpServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.mail.transport import MailTransport
    from tests.servers.smtp import Stage

CODE = "012345"


def mail(recipient: str = "ada@example.com") -> ClaimedMail:
    """Return a mail that was claimed just now."""
    return claimed(id=uuid4(), recipient=recipient)


def send(
    url: str, *mails: ClaimedMail, between: Callable[[], None] = lambda: None, backend: str = "uvloop"
) -> list[Exception | None]:
    """Send one after the other over one transport, and return how each ended."""
    outcomes: list[Exception | None] = []

    async def body(transport: MailTransport) -> None:
        for one in mails:
            try:
                await transport.send(one, CODE)
            except (Deferred, Rejected) as error:
                outcomes.append(error)
            else:
                outcomes.append(None)
            await anyio.to_thread.run_sync(between)

    with_transport(url, body, backend)
    return outcomes


def reason(outcome: Exception | None) -> str:
    """Return the outcome's kind and reason in one line."""
    return f"{type(outcome).__name__}: {outcome}"


def test_mails_leave_over_one_connection_to_recipients_as_servers_know_them(smtp: SmtpServer) -> None:
    """A connection serves more than one mail; apostrophes, plus tags, umlauts and quotes reach RCPT whole."""
    recipients = {
        "o'neil+tag@example.com": "o'neil+tag@example.com",
        "ada@bücher.example": "ada@xn--bcher-kva.example",
        '"ada lovelace"@example.com': '"ada lovelace"@example.com',
    }
    assert send(smtp.url, *map(mail, recipients)) == [None] * 3
    received = smtp.wait_for(3)
    assert smtp.connections == 1
    assert [one.recipients for one in received] == [(mailed,) for mailed in recipients.values()]
    assert {one.sender for one in received} == {"shop@example.com"}
    assert all(CODE in one.text.splitlines() for one in received)


def test_a_line_break_in_an_address_never_reaches_the_server(smtp: SmtpServer) -> None:
    """A second recipient cannot be smuggled in, and no connection is made for the try."""
    [outcome] = send(smtp.url, mail("ada@example.com>\r\nRCPT TO:<eve@example.com"))
    assert isinstance(outcome, Rejected)
    assert (smtp.mails, smtp.connections) == ([], 0)


def test_a_repeat_is_the_same_mail(smtp: SmtpServer) -> None:
    """After 4xx replies and a lost answer the server sees the same Message-ID again."""
    smtp.answer("451 4.3.0 ada@example.com is busy")
    smtp.answer("450 4.2.0 greylisted", at="RCPT")
    smtp.hang_up()
    same = mail()
    outcomes = [reason(outcome) for outcome in send(smtp.url, *[same] * 4)]
    assert outcomes == [
        "Deferred: 450 4.2.0 greylisted at RCPT",
        "Deferred: 451 4.3.0 error at the server at DATA",
        "Deferred: connection closed by the server at DATA",
        "NoneType: None",
    ]
    assert len({one.message["Message-ID"] for one in smtp.wait_for(2)}) == 1


@pytest.mark.parametrize(
    ("stage", "reply", "kind"),
    [
        # about the recipient or the content: no other try can succeed
        ("RCPT", "550 5.1.1 <ada@example.com> unknown in relay recipient table", Rejected),
        ("RCPT", "550 5.1.10 no mail for this domain", Rejected),
        ("RCPT", "552 5.2.2 mailbox full", Rejected),
        ("RCPT", "550 No such user here", Rejected),
        ("RCPT", "550 5.1.0 no such user", Rejected),
        ("RCPT", "553 <relay@example.com> not allowed", Rejected),
        ("DATA", "552 5.3.4 message too big", Rejected),
        ("DATA", "554 5.6.0 malformed", Rejected),
        ("DATA", "554 5.7.1 spam message", Rejected),
        ("DATA", "554 content refused", Rejected),
        # about us: an operator can mend it
        ("MAIL", "550 5.7.1 not this sender", ServerUnavailable),
        ("MAIL", "530 5.7.0 authentication required", ServerUnavailable),
        ("MAIL", "421 4.3.2 closing", ServerUnavailable),
        ("RCPT", "530 5.7.0 log in first", Deferred),
        ("RCPT", "554 5.7.1 relay access denied", Deferred),
        ("RCPT", "550 5.7.1 not permitted", Deferred),
        ("RCPT", "550 relaying denied", Deferred),
        ("RCPT", "553 sorry, that domain is not in my list of allowed rcpthosts", Deferred),
        ("RCPT", "550 Sender verify failed", Deferred),
        ("RCPT", "553 5.1.8 sender's domain not found", Deferred),
        ("RCPT", "504 5.5.2 <app-7f9c>: Helo command rejected: need fully-qualified hostname", Deferred),
        ("RCPT", "554 5.7.1 Client host blocked using a list", Deferred),
        ("RCPT", "421 4.3.2 closing", Deferred),
        ("RCPT", "452 4.2.2 mailbox full", Deferred),
        ("DATA", "550 5.7.26 unauthenticated sender", Deferred),
        ("DATA", "554 5.7.1 DMARC policy", Deferred),
        ("DATA", "421 4.7.0 closing", Deferred),
        ("DATA", "452 4.3.1 disk full", Deferred),
    ],
)
@pytest.mark.parametrize("pipelining", [True, False], ids=["together", "one by one"])
def test_only_what_is_about_the_recipient_or_the_content_is_final(
    stage: Stage, reply: str, kind: type[Exception], *, pipelining: bool
) -> None:
    """A refusal of the sender, the host name, the log-in or the relaying costs no mail."""
    with SmtpServer(pipelining=pipelining) as smtp:
        smtp.answer(reply, at=stage)
        first, second = send(smtp.url, mail(), mail())
        assert type(first) is kind
        assert str(first).startswith(reply[:3])
        assert str(first).endswith(f"at {stage}")
        assert "ada" not in str(first)
        assert second is None
        assert smtp.connections == (1 if kind is Rejected else 2)  # what was refused may be mended for new ones only


SCRIPTS = {  # what the server says, and what it must have heard by then
    "a refusal before the content": [
        (b"220 here\r\n", b"EHLO mx.example.org\r\n"),
        (b"250-here\r\n250 PIPELINING\r\n", b"MAIL FROM:<shop@example.com>\r\nRCPT TO:<ada@example.com>\r\nDATA\r\n"),
        (b"250 fine\r\n550 5.1.1 unknown\r\n354 go on\r\n", b""),
    ],
    "no PIPELINING offered": [
        (b"220 here\r\n", b"EHLO mx.example.org\r\n"),
        (b"250-here\r\n250 8BITMIME\r\n", b"MAIL FROM:<shop@example.com>\r\n"),
        (b"250 fine\r\n", b"RCPT TO:<ada@example.com>\r\n"),
        (b"550-5.1.1 unknown\r\n550 5.1.1 really\r\n", b"RSET\r\n"),
        (b"250 fine\r\n", b"QUIT\r\n"),
    ],
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_commands_leave_together_where_the_server_offers_it(script: list[tuple[bytes, bytes]]) -> None:
    """One that has refused the recipient and asks for the content all the same gets none."""
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            for reply, _ in script:
                connection.sendall(reply)
                heard.append(connection.recv(4096))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        [outcome] = send(f"smtp://127.0.0.1:{listener.getsockname()[1]}", mail())
        thread.join(10)
    assert reason(outcome) == "Rejected: 550 5.1.1 no such mailbox at RCPT"
    assert heard == [expected for _, expected in script]


def test_a_server_that_speaks_unasked_is_left(smtp: SmtpServer) -> None:
    """What it says is no reply to the next mail, which takes a new connection."""
    assert send(smtp.url, mail(), mail(), between=lambda: smtp.say("421 4.4.2 idle for too long")) == [None, None]
    assert (len(smtp.wait_for(2)), smtp.connections) == (2, 2)


@pytest.mark.parametrize("stage", ["MAIL", "RCPT"])
@pytest.mark.parametrize("end", ["hang up", "421 4.3.2 closing", "452 4.5.3 enough on this connection"])
def test_a_connection_that_ended_before_the_content_is_replaced_at_once(
    smtp: SmtpServer, stage: Stage, end: str
) -> None:
    """A mail does not wait a back-off because the server has cut an old connection, politely or not."""

    def between() -> None:
        if smtp.connections == 1:
            smtp.hang_up(at=stage) if end == "hang up" else smtp.answer(end, at=stage)

    assert send(smtp.url, mail(), mail(), between=between) == [None, None]
    assert (len(smtp.wait_for(2)), smtp.connections) == (2, 2)


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_why_no_mail_can_be_sent_is_said_in_words(smtp: SmtpServer, backend: str) -> None:
    """Nothing of the URL is in the reason: no host, no password."""
    with SmtpServer(login=("user", "right")) as server, SmtpServer() as open_to_all:
        wrong = server.url.replace("right", "wrong-secret")
        smtp.refuse()
        port = smtp.url.rpartition(":")[2]
        urls = {
            wrong: "535 5.7.8 authentication failed",
            server.url.replace("smtp://", "smtp+starttls://"): "no STARTTLS offered",
            server.url.replace("smtp://", "smtps://"): "TLS handshake failed at connect",
            smtp.url: "connection refused at connect",
            f"smtp://localhost:{port}": "connection refused at connect",
            "smtp://nowhere.invalid": "host name not found at connect",
            open_to_all.url.replace("smtp://", "smtp://user:secret@"): "no AUTH offered that we know",
        }
        for url, words in urls.items():
            [outcome] = send(url, mail(), backend=backend)
            assert reason(outcome) == f"ServerUnavailable: {words}"
        assert send(server.url, mail(), backend=backend) == [None]


def test_a_check_connects_and_logs_in_and_the_next_mail_uses_that_connection(smtp: SmtpServer) -> None:
    """Checking sends nothing; a test mail arrives like any other."""

    async def body(transport: MailTransport) -> None:
        smtp.refuse()
        with pytest.raises(ServerUnavailable):
            await transport.check()
        smtp.accept()
        await transport.check()
        assert (smtp.connections, smtp.mails) == (1, [])
        await transport.send_test("ops@example.org", uuid4())

    with_transport(smtp.url, body)
    [received] = smtp.wait_for(1)
    assert (smtp.connections, received.recipients) == (1, ("ops@example.org",))


async def thirty_at_once(transport: MailTransport) -> None:
    """Send mails that share the connections."""
    async with anyio.create_task_group() as group:
        for _ in range(30):
            group.start_soon(transport.send, mail(), CODE)


def test_no_more_connections_are_opened_than_agreed(smtp: SmtpServer) -> None:
    """Thirty mails at once share them."""
    with_transport(smtp.url, thirty_at_once)
    assert len(smtp.wait_for(30)) == 30
    assert smtp.connections <= CONNECTIONS


def test_a_server_that_serves_fewer_connections_is_no_failing_server() -> None:
    """Mails wait for a connection that it serves; our name is the configured one."""
    with SmtpServer(most=2) as server:
        with_transport(server.url, thirty_at_once)
        assert len(server.mails) == 30
        assert server.names == {"mx.example.org"}
    with SmtpServer(most=0) as server:
        [outcome] = send(server.url, mail())
        assert reason(outcome).endswith(": 421 4.7.0 too much for the server at connect")


SENDING = """
import sys
from tests.integration.test_smtp import mail, reason, send
for url in sys.argv[1:]:
    for backend in ("asyncio", "uvloop"):
        print(*map(reason, send(url, mail(), backend=backend)))
"""


def sent_elsewhere(*urls: str, **environment: str) -> list[str]:
    """Send to each twice, in a process of its own: OpenSSL reads SSL_CERT_FILE from the real environment."""
    command = [sys.executable, "-c", SENDING, *urls]
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


def test_an_encrypted_way_is_taken_only_to_a_server_that_is_trusted(tmp_path: Path) -> None:
    """Trust comes from the system or SSL_CERT_FILE; without it the mail is deferred, never sent in the clear."""
    context = vouch_for_ourselves(tmp_path)
    with SmtpServer(tls=context) as smtps, SmtpServer(starttls=context) as starttls:
        urls = [f"smtps://localhost:{smtps.port}", f"smtp+starttls://localhost:{starttls.port}"]
        others = [url.replace("localhost", "0") for url in urls]  # another name for this machine
        words = "ServerUnavailable: certificate not trusted"
        stages = ["connect", "connect", "STARTTLS", "STARTTLS"]
        said = sent_elsewhere(*urls, *others, SSL_CERT_FILE=str(tmp_path / "cert.pem"))
        assert said == ["NoneType: None"] * 4 + [f"{words}: wrong host name at {stage}" for stage in stages]
        assert sent_elsewhere(*urls) == [f"{words}: self-signed at {stage}" for stage in stages]
        assert (len(smtps.mails), len(starttls.mails)) == (2, 2)
