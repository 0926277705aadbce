"""Sends mails over SMTP, on connections that stay open between mails."""

from __future__ import annotations

import re
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
from aiosmtplib import SMTP, SMTPConnectResponseError, SMTPException, SMTPResponseException

from actors.domain.mail import Deferred, Rejected, ServerUnavailable
from service.mail.server import connection_reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from actors.domain.mail import ClaimedMail
    from service.mail.message import Message, Messages
    from service.mail.server import SmtpServer

CONNECTIONS = 8  # at once; fewer when the server refuses to serve so many
CONNECT_SECONDS = 10.0
COMMAND_SECONDS = 30.0
DATA_SECONDS = 120.0  # servers scan a mail for spam and viruses before they answer for it, some for a minute
LONGEST_DIALOGUE_SECONDS = CONNECT_SECONDS + COMMAND_SECONDS + DATA_SECONDS  # beyond it a mail is sent in vain
IDLE_SECONDS = 30.0  # an unused connection is closed after it; servers cut it after a minute or five
TIDY_SECONDS = 5.0
PERMANENT, SERVICE_CLOSING = 500, 421

ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?!\S)")  # RFC 3463
UNSPECIFIC = {"5.0.0", "5.1.0", "5.7.0", "5.7.1"}  # the plain code and the text decide, where they may
# About the recipient (5.1.7 and 5.1.8 are about the sender), its mailbox, the mail's size or its content.
ABOUT_THE_MAIL = re.compile(r"5\.1\.(?![78]$)\d+|5\.2\.\d+|5\.3\.4|5\.6\.\d+")
REFUSING_CODES = {"RCPT": {550, 551, 552, 553, 556}, "DATA": {550, 552, 554}}
# Words of refusals that an operator can mend, whatever the code: relaying, sender, log-in, host name, reputation.
ABOUT_US = re.compile(
    r"relay|rcpthosts|sender|authenti|log ?in|helo|ehlo|spf|dkim|dmarc|client host|reverse|\bptr\b|block|reputation",
    re.IGNORECASE,
)
ADDRESSES = re.compile(r"<[^>]*>|\S*@\S*")
WORDS = {  # for the enhanced code, else for the code
    "5.1.1": "no such mailbox",
    "5.1.2": "no such domain",
    "5.2.2": "mailbox full",
    "5.3.4": "message too big",
    "5.7.1": "not permitted",
    "5.7.8": "authentication failed",
    "421": "service not available",
    "450": "mailbox busy",
    "451": "error at the server",
    "452": "no room at the server",
    "530": "authentication required",
    "534": "authentication mechanism too weak",
    "535": "authentication failed",
    "550": "mailbox not available",
    "552": "too big",
    "553": "address not allowed",
    "554": "refused",
}


class _ConnectionLost(Exception):
    """The connection was lost before the mail's content was sent: another one may take it at once."""

    def __init__(self, deferred: Deferred) -> None:
        super().__init__()
        self.deferred = deferred


class _TooManyConnections(ServerUnavailable):
    """The server greeted a connection with a refusal for now."""


class SmtpTransport:
    """Sends mails to one SMTP server, over at most CONNECTIONS connections at a time."""

    def __init__(self, server: SmtpServer, messages: Messages, ehlo_name: str) -> None:
        self._server = server
        self._messages = messages
        self._ehlo_name = ehlo_name
        self._connections = anyio.CapacityLimiter(CONNECTIONS)
        self._idle: list[tuple[SMTP, float]] = []
        self._tls = ssl.create_default_context() if server.security != "none" else None

    @classmethod
    @asynccontextmanager
    async def open(cls, server: SmtpServer, messages: Messages, ehlo_name: str) -> AsyncIterator[SmtpTransport]:
        """Give a transport around the body; connects when there is a mail, and quits at the end."""
        transport = cls(server, messages, ehlo_name)
        async with anyio.create_task_group() as group:
            group.start_soon(transport._close_idle)
            yield transport
            group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True), anyio.move_on_after(1):
            await transport._quit_unused(0.0)

    async def check(self) -> None:
        """Connect and log in, and keep the connection for the next mail; raises ServerUnavailable."""
        async with self._connections:
            self._idle.append((await self._connect(), anyio.current_time()))

    async def send(self, mail: ClaimedMail, code: str | None) -> None:
        """Return when the server has accepted the mail; raises Deferred, ServerUnavailable or Rejected."""
        await self._send(self._messages.write(mail, code))

    async def send_test(self, recipient: str, test_id: UUID) -> None:
        """Send a test mail; raises as `send` does."""
        await self._send(self._messages.test(recipient, test_id))

    async def _send(self, message: Message) -> None:
        content = message.encode()
        while True:
            async with self._connections:
                client = self._reusable()
                if client is not None:
                    with suppress(_ConnectionLost):  # it went stale; what counts is what a new one says
                        return await self._send_over(client, message, content)
                try:
                    client = await self._connect()
                except _TooManyConnections:
                    others = self._connections.borrowed_tokens - 1
                    if not others:
                        raise
                    self._connections.total_tokens = others  # it serves those: wait for one of them
                    continue
                try:
                    return await self._send_over(client, message, content)
                except _ConnectionLost as lost:
                    raise lost.deferred from None

    async def _connect(self) -> SMTP:
        """Connect, greet, encrypt and log in as MAIL_URL asks for; never less."""
        server = self._server
        client = SMTP(
            hostname=server.host,
            port=server.port,
            use_tls=server.security == "tls",
            start_tls=False,  # below, where its failure can be told in words
            tls_context=self._tls,
            local_hostname=self._ehlo_name,
            timeout=CONNECT_SECONDS,
        )
        try:
            await client.connect()
            await self._log_in(client)
        except ServerUnavailable:
            client.close()
            raise
        except SMTPConnectResponseError as error:
            kind = ServerUnavailable if error.code >= PERMANENT else _TooManyConnections
            raise kind(_reason(error, "connect")) from None
        except SMTPResponseException as error:
            client.close()
            raise ServerUnavailable(_reason(error, "log-in")) from None
        except (SMTPException, OSError, ValueError) as error:
            client.close()
            raise ServerUnavailable(f"{connection_reason(error)} at connect") from None
        except BaseException:
            client.close()
            raise
        return client

    async def _log_in(self, client: SMTP) -> None:
        server = self._server
        await client._ehlo_or_helo_if_needed()  # noqa: SLF001 - an old server knows no EHLO
        if server.security == "starttls":
            if not client.supports_extension("starttls"):
                raise ServerUnavailable("no STARTTLS offered")
            await client.starttls()
        if server.user is not None:
            await client._ehlo_or_helo_if_needed()  # noqa: SLF001 - what was said in plain text does not count
            if not client.supported_auth_methods:
                raise ServerUnavailable("no AUTH offered that we know")
            await client.login(server.user, server.password or "")

    async def _send_over(self, client: SMTP, message: Message, content: bytes) -> None:
        """Send over this connection and keep it for the next mail; one that was refused is reset first."""
        kept = False
        try:
            await _transact(client, message, content)
            kept = True
        except (Rejected, Deferred):
            kept = await _reset(client)
            raise
        finally:
            if kept and client.is_connected:
                self._idle.append((client, anyio.current_time()))
            else:
                client.close()

    def _reusable(self) -> SMTP | None:
        """Return the connection that was used last, if any is alive."""
        while self._idle:
            client, since = self._idle.pop()
            if client.is_connected and anyio.current_time() - since < IDLE_SECONDS:
                return client
            client.close()
        return None

    async def _close_idle(self) -> None:
        while True:
            await anyio.sleep(TIDY_SECONDS)
            await self._quit_unused(IDLE_SECONDS)

    async def _quit_unused(self, seconds: float) -> None:
        """Quit the connections that have not been used for so long."""
        until = anyio.current_time() - seconds
        leaving = [client for client, since in self._idle if since <= until]
        self._idle = [(client, since) for client, since in self._idle if since > until]
        for client in leaving:
            with suppress(SMTPException, OSError):
                await client.quit(timeout=1)
            client.close()


async def _transact(client: SMTP, message: Message, content: bytes) -> None:
    stage = "MAIL"
    try:
        await client.mail(message.sender.address, timeout=COMMAND_SECONDS)
        stage = "RCPT"
        await client.rcpt(message.recipient, timeout=COMMAND_SECONDS)
        stage = "DATA"
        await client.data(content, timeout=DATA_SECONDS)
    except SMTPResponseException as error:
        raise _verdict(stage, error) from None
    except (SMTPException, OSError) as error:
        reason = f"{connection_reason(error)} at {stage}"
        raise _lost(stage, reason) from None


async def _reset(client: SMTP) -> bool:
    """Return whether the connection is fit for another mail after a refusal."""
    try:
        await client.rset(timeout=COMMAND_SECONDS)
    except (SMTPException, OSError):
        return False
    return client.is_connected


def _lost(stage: str, reason: str) -> Exception:
    if stage == "DATA":
        return Deferred(reason)
    return _ConnectionLost(ServerUnavailable(reason) if stage == "MAIL" else Deferred(reason))


def _verdict(stage: str, error: SMTPResponseException) -> Exception:
    """Reject only what the server refuses for good about this recipient or this content.

    The sender is the same for all mails, and so are relaying, log-in and host name: an operator can mend those.
    """
    reason = _reason(error, stage)
    if error.code == SERVICE_CLOSING:
        return _lost(stage, reason)
    if stage == "MAIL":
        return ServerUnavailable(reason)
    return Rejected(reason) if error.code >= PERMANENT and _about_the_mail(stage, error) else Deferred(reason)


def _about_the_mail(stage: str, error: SMTPResponseException) -> bool:
    enhanced = ENHANCED.match(error.message)
    if enhanced and enhanced[0] not in UNSPECIFIC:
        return bool(ABOUT_THE_MAIL.fullmatch(enhanced[0]))
    if enhanced and enhanced[0].startswith("5.7.") and stage == "RCPT":
        return False  # a policy about who may send, not about the content
    return error.code in REFUSING_CODES[stage] and not ABOUT_US.search(ADDRESSES.sub("", error.message))


def _reason(error: SMTPResponseException, stage: str) -> str:
    """Return the reply's codes with words of our own, and the stage; the reply's text may hold addresses."""
    enhanced = ENHANCED.match(error.message)
    codes = [str(error.code), *([enhanced[0]] if enhanced else [])]
    words = [WORDS[code] for code in reversed(codes) if code in WORDS][:1]
    reason = " ".join([*codes, *words])
    return reason if stage == "log-in" else f"{reason} at {stage}"
