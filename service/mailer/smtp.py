"""Sends mails over SMTP, on connections that stay open between mails."""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
from aiosmtplib import (
    SMTP,
    SMTPDataError,
    SMTPException,
    SMTPRecipientRefused,
    SMTPResponseException,
)

from actors.domain.mail import Deferred, Rejected, Unreached
from service.mailer.envelope import message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from actors.domain.mail import ClaimedMail
    from service.mailer.envelope import Envelope, Envelopes
    from service.mailer.mail_url import SmtpServer

CONNECTIONS = 8  # at once and process: mail servers turn away who opens more than ten or twenty
CONNECT_SECONDS = 10.0
COMMAND_SECONDS = 30.0
DATA_SECONDS = 120.0  # servers scan a mail for spam and viruses before they answer for it, some for a minute
IDLE_SECONDS = 30.0  # an unused connection is closed after it; servers cut it after a minute or five
TIDY_SECONDS = 5.0
PERMANENT, SERVICE_CLOSING = 500, 421
NOT_THIS_MAIL = {530, 534, 535, 538}  # about our log-in: an operator can mend it
ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?!\S)")


class _Dropped(Deferred):
    """The connection was lost before the mail's content was sent: another connection may take it at once."""


class SmtpPostman:
    """Hands mails to one SMTP server, over at most CONNECTIONS connections at a time."""

    def __init__(self, server: SmtpServer, envelopes: Envelopes) -> None:
        self._server = server
        self._envelopes = envelopes
        self._places = anyio.CapacityLimiter(CONNECTIONS)
        self._idle: list[tuple[SMTP, float]] = []
        self._tls = ssl.create_default_context() if server.security != "none" else None

    @classmethod
    @asynccontextmanager
    async def open(cls, server: SmtpServer, envelopes: Envelopes) -> AsyncIterator[SmtpPostman]:
        """Give a postman around the body; connects when there is a mail, and takes leave of the server at the end."""
        postman = cls(server, envelopes)
        async with anyio.create_task_group() as aside:
            aside.start_soon(postman._tidying)
            yield postman
            aside.cancel_scope.cancel()
        with anyio.CancelScope(shield=True), anyio.move_on_after(1):
            await postman._take_leave(IDLE_SECONDS * -1)

    async def reach(self) -> None:
        """Connect and log in, and keep the connection for the next mail; raises Deferred."""
        async with self._places:
            self._idle.append((await self._connect(), anyio.current_time()))

    async def send(self, mail: ClaimedMail, code: str | None) -> None:
        """Return once the server has accepted the mail; raises Deferred or Rejected."""
        envelope = self._envelopes.fill(mail, code)
        content = message(envelope)
        async with self._places:
            client = self._reusable()
            if client is not None:
                with suppress(_Dropped):  # it went stale; what counts is what a fresh one says
                    await self._over(client, envelope, content)
                    return
            await self._over(await self._connect(), envelope, content)

    async def _connect(self) -> SMTP:
        server = self._server
        client = SMTP(
            hostname=server.host,
            port=server.port,
            username=server.user,
            password=server.password,
            use_tls=server.security == "tls",
            start_tls=server.security == "starttls",
            tls_context=self._tls,
            local_hostname=_own_name(),
            timeout=CONNECT_SECONDS,
        )
        try:
            await client.connect()
        except SMTPResponseException as error:
            raise Deferred(_reason("connect", error)) from None
        except (SMTPException, OSError, ValueError) as error:
            raise Unreached(f"{type(error).__name__} at connect") from None
        return client

    async def _over(self, client: SMTP, envelope: Envelope, content: bytes) -> None:
        """Send over this connection and keep it for the next mail; one that was refused is reset first."""
        kept = False
        try:
            await _transact(client, envelope, content)
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

    async def _tidying(self) -> None:
        while True:
            await anyio.sleep(TIDY_SECONDS)
            await self._take_leave(IDLE_SECONDS)

    async def _take_leave(self, unused_for: float) -> None:
        """Say good-bye on connections that have not been used for so long."""
        now = anyio.current_time()
        leaving = [client for client, since in self._idle if now - since >= unused_for]
        self._idle = [(client, since) for client, since in self._idle if client not in leaving]
        for client in leaving:
            with suppress(SMTPException, OSError):
                await client.quit(timeout=1)
            client.close()


async def _transact(client: SMTP, envelope: Envelope, content: bytes) -> None:
    stage = "MAIL"
    try:
        await client.mail(envelope.sender.address, timeout=COMMAND_SECONDS)
        stage = "RCPT"
        await client.rcpt(envelope.recipient, timeout=COMMAND_SECONDS)
        stage = "DATA"
        await client.data(content, timeout=DATA_SECONDS)
    except SMTPResponseException as error:
        raise _verdict(stage, error) from None
    except (SMTPException, OSError) as error:
        reason = f"{type(error).__name__} at {stage}"
        raise (Deferred if stage == "DATA" else _Dropped)(reason) from None


async def _reset(client: SMTP) -> bool:
    """Return whether the connection is fit for another mail after a refusal."""
    try:
        await client.rset(timeout=COMMAND_SECONDS)
    except (SMTPException, OSError):
        return False
    return client.is_connected


def _verdict(stage: str, error: SMTPResponseException) -> Deferred | Rejected:
    """Reject only what the server refuses for good and because of this mail; the sender is the same for all mails."""
    reason = _reason(stage, error)
    about_the_mail = isinstance(error, SMTPRecipientRefused | SMTPDataError)
    if error.code >= PERMANENT and about_the_mail and error.code not in NOT_THIS_MAIL:
        return Rejected(reason)
    if error.code == SERVICE_CLOSING and stage != "DATA":
        return _Dropped(reason)
    return Deferred(reason)


def _reason(stage: str, error: SMTPResponseException) -> str:
    """Return the reply code, the enhanced one (RFC 3463) and the stage; the reply's text may hold addresses."""
    enhanced = ENHANCED.match(error.message)
    return f"{error.code} {enhanced[0] + ' ' if enhanced else ''}at {stage}"


def _own_name() -> str:
    """Return the name for EHLO, without asking a name server."""
    name = socket.gethostname()
    return name if re.fullmatch(r"[A-Za-z0-9.-]+", name) else "localhost"
