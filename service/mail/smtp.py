"""Sends mails over SMTP, on connections that stay open between mails."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

import anyio
from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPConnectResponseError,
    SMTPException,
    SMTPResponse,
    SMTPResponseException,
)

from actors.domain.mail import Deferred, Rejected, ServerUnavailable
from service.mail.dialogue import GO_ON, Dialogue, content_lines, take_over
from service.mail.server import connection_reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from uuid import UUID

    from actors.domain.mail import ClaimedMail
    from service.mail.message import Message, Messages
    from service.mail.server import SmtpServer

CONNECTIONS = 8  # at once; fewer when the server refuses to serve so many
CONNECT_SECONDS = 5.0  # for each address of the host: the next one may be alive
LOG_IN_SECONDS = 60.0  # until mails can be sent: some servers greet late, to try whether a client is patient
COMMAND_SECONDS = 30.0
DATA_SECONDS = 120.0  # servers scan a mail for spam and viruses before they answer for it, some for a minute
# Beyond it a mail is sent in vain: log-in, MAIL and RCPT, the content.
LONGEST_DIALOGUE_SECONDS = LOG_IN_SECONDS + 2 * COMMAND_SECONDS + DATA_SECONDS
IDLE_SECONDS = 30.0  # an unused connection is closed after it; servers cut it after a minute or five
TIDY_SECONDS = 5.0  # between looks for connections that nobody has used
COMPLETED, SERVICE_CLOSING, PERMANENT, BAD_CREDENTIALS = 250, 421, 500, 535
EXPECTED = {"MAIL": {COMPLETED}, "RCPT": {COMPLETED, 251}, "DATA": {GO_ON}}  # 251: will forward
ENOUGH_ON_THIS_CONNECTION = "4.5.3"  # RFC 3463: too many recipients, as counted by some over a connection

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
WORDS = {  # for the enhanced code or the code, where it says enough
    "5.1.1": "no such mailbox",
    "5.1.2": "no such domain",
    "5.2.2": "mailbox full",
    "5.3.4": "message too big",
    "5.7.8": "authentication failed",
    "534": "authentication mechanism too weak",
    "535": "authentication failed",
}
WORDS_FOR_TEXT = {  # else for what the text speaks of
    r"helo|ehlo": "host name refused",
    r"relay|rcpthosts": "relaying denied",
    r"sender": "sender refused",
    r"gr[ae]y-?list": "greylisted",
    r"too m|\brate\b": "too much for the server",
    r"block|reputation": "blocked",
    r"starttls": "encryption required",
}
GENERAL_WORDS = {  # else for the enhanced code or the code
    "4.7.1": "not permitted",
    "5.7.1": "not permitted",
    "421": "service not available",
    "450": "mailbox busy",
    "451": "error at the server",
    "452": "no room at the server",
    "454": "not available for now",
    "530": "authentication required",
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
        self._idle: list[tuple[Dialogue, float]] = []
        self._reached: object = None  # the host's address that answered last
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
        content = content_lines(message.encode())
        while True:
            async with self._connections:
                dialogue = self._reusable()
                if dialogue is not None:
                    # It went stale or has served its share of mails; what counts is what a new one says.
                    with suppress(_ConnectionLost, ServerUnavailable):
                        return await self._send_over(dialogue, message, content)
                try:
                    dialogue = await self._connect()
                except _TooManyConnections:
                    others = self._connections.borrowed_tokens - 1
                    if not others:
                        raise
                    self._connections.total_tokens = others  # it serves those: wait for one of them
                    continue
                try:
                    return await self._send_over(dialogue, message, content)
                except _ConnectionLost as lost:
                    raise lost.deferred from None

    async def _connect(self) -> Dialogue:
        """Connect, greet, encrypt and log in as MAIL_URL asks for; never less."""
        server = self._server
        client = SMTP(
            hostname=server.host,
            use_tls=server.security == "tls",
            start_tls=False,  # below, where its failure can be told in words
            tls_context=self._tls,
            local_hostname=self._ehlo_name,
            timeout=COMMAND_SECONDS,
        )
        try:
            with _stage("log-in"), anyio.fail_after(LOG_IN_SECONDS):
                with _stage("connect"):
                    await client.connect(sock=await self._reach())
                with _stage("EHLO"):
                    await client._ehlo_or_helo_if_needed()  # noqa: SLF001 - an old server knows no EHLO
                if server.security == "starttls":
                    with _stage("STARTTLS"):
                        await _encrypt(client)
                if server.user is not None:
                    with _stage("AUTH"):
                        await _log_in(client, server.user, server.password or "", clear=server.security == "none")
                with _stage("connect"):
                    return take_over(client.transport, pipelining=client.supports_extension("pipelining"))
        except BaseException:
            client.close()
            raise

    async def _reach(self) -> socket.socket:
        """Connect to the first address of the host that answers, the one of last time before the others."""
        server = self._server
        places = await anyio.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
        failure: OSError | None = None
        for family, kind, protocol, _, address in sorted(places, key=lambda place: place[4] != self._reached):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(0)
                with anyio.fail_after(CONNECT_SECONDS):
                    await asyncio.get_running_loop().sock_connect(connection, address)
            except OSError as error:
                connection.close()
                failure = error
            except BaseException:
                connection.close()
                raise
            else:
                self._reached = address
                return connection
        raise failure or ConnectionRefusedError

    async def _send_over(self, dialogue: Dialogue, message: Message, content: bytes) -> None:
        """Send over this connection and keep it for the next mail, unless the server refused more than this mail.

        What refuses for now may be mended meanwhile, and a server may show that to new connections only.
        """
        kept = False
        try:
            await _transact(dialogue, message, content)
            kept = True
        except Rejected:
            kept = await _reset(dialogue)
            raise
        except Deferred:
            await _quit(dialogue)
            raise
        finally:
            if kept and dialogue.is_open:
                self._idle.append((dialogue, anyio.current_time()))
            else:
                dialogue.close()

    def _reusable(self) -> Dialogue | None:
        """Return the connection that was used last, if any is alive."""
        while self._idle:
            dialogue, since = self._idle.pop()
            if dialogue.is_open and anyio.current_time() - since < IDLE_SECONDS:
                return dialogue
            dialogue.close()
        return None

    async def _close_idle(self) -> None:
        while True:
            await anyio.sleep(TIDY_SECONDS)
            await self._quit_unused(IDLE_SECONDS)
            if self._connections.total_tokens < CONNECTIONS:
                self._connections.total_tokens += 1  # it may serve more by now

    async def _quit_unused(self, seconds: float) -> None:
        """Quit the connections that have not been used for so long."""
        until = anyio.current_time() - seconds
        leaving = [dialogue for dialogue, since in self._idle if since <= until]
        self._idle = [(dialogue, since) for dialogue, since in self._idle if since > until]
        for dialogue in leaving:
            await _quit(dialogue)


@contextmanager
def _stage(name: str) -> Iterator[None]:
    """Raise ServerUnavailable, in words, for what fails in this stage of a connection's beginning."""
    try:
        yield
    except SMTPConnectResponseError as error:
        kind = ServerUnavailable if error.code >= PERMANENT else _TooManyConnections
        raise kind(_reason(error, name)) from None
    except SMTPResponseException as error:
        raise ServerUnavailable(_reason(error, name)) from None
    except (SMTPException, OSError, ValueError) as error:
        raise ServerUnavailable(f"{connection_reason(error)} at {name}") from None


async def _encrypt(client: SMTP) -> None:
    """Go on under TLS, or not at all; what the server said in clear does not count afterwards."""
    if not client.supports_extension("starttls"):
        raise ServerUnavailable("no STARTTLS offered")
    await client.starttls()
    await client._ehlo_or_helo_if_needed()  # noqa: SLF001 - as above


async def _log_in(client: SMTP, user: str, password: str, *, clear: bool) -> None:
    """Log in by a mechanism that the server offers, with one guess at the password where it is the password.

    Under TLS the plain mechanisms come first, as every server can check them. In clear CRAM-MD5 does, and its refusal
    is not the last word: many a server offers it and has no password in a form that it could check.
    """
    plain = {"plain": client.auth_plain, "login": client.auth_login}
    hashed = {"cram-md5": client.auth_crammd5}
    mechanisms = hashed | plain if clear else plain | hashed
    offered = [name for name in mechanisms if name in client.supported_auth_methods]
    for name in offered:
        try:
            await mechanisms[name](user, password)
        except SMTPAuthenticationError as error:
            final = error.code == BAD_CREDENTIALS and name in plain
            if final or name == offered[-1]:
                raise
        else:
            return
    raise ServerUnavailable("no AUTH offered that we know")


async def _transact(dialogue: Dialogue, message: Message, content: bytes) -> None:
    """Have the server take the mail; `content` as `content_lines` makes it. Raises as `send` does, or _ConnectionLost.

    Where the commands leave together, a server that has refused the recipient may ask for the content all the same: it
    gets none, not even an empty one, which it might deliver.
    """
    commands = {
        "MAIL": f"MAIL FROM:<{message.sender.address}>".encode(),
        "RCPT": f"RCPT TO:<{message.recipient}>".encode(),
        "DATA": b"DATA",
    }
    if dialogue.pipelining:
        dialogue.send(*commands.values())
    refusal: Exception | None = None
    for stage, command in commands.items():
        if not dialogue.pipelining:
            dialogue.send(command)
        reply = await _reply(dialogue, stage, refusal)
        if refusal is None and reply.code not in EXPECTED[stage]:
            refusal = _verdict(stage, reply)
        if refusal is not None and not dialogue.pipelining:
            raise refusal
    if refusal is not None:
        if reply.code == GO_ON:
            dialogue.close()
        raise refusal
    dialogue.send(content)
    reply = await _reply(dialogue, "DATA")
    if reply.code != COMPLETED:
        raise _verdict("DATA", reply)


async def _reply(dialogue: Dialogue, stage: str, refusal: Exception | None = None) -> SMTPResponse:
    """Return the next reply; without one raise the refusal, or that the connection is lost."""
    try:
        return await dialogue.reply(DATA_SECONDS if stage == "DATA" else COMMAND_SECONDS)
    except (SMTPException, OSError) as error:
        raise refusal or _lost(stage, f"{connection_reason(error)} at {stage}") from None


async def _quit(dialogue: Dialogue) -> None:
    with suppress(SMTPException, OSError):
        await dialogue.quit(1)
    dialogue.close()


async def _reset(dialogue: Dialogue) -> bool:
    """Return whether the connection is fit for another mail after a refusal."""
    try:
        dialogue.send(b"RSET")
        await dialogue.reply(COMMAND_SECONDS)
    except (SMTPException, OSError):
        return False
    return dialogue.is_open


def _lost(stage: str, reason: str) -> Exception:
    if stage == "DATA":
        return Deferred(reason)
    return _ConnectionLost(ServerUnavailable(reason) if stage == "MAIL" else Deferred(reason))


def _verdict(stage: str, reply: SMTPResponse) -> Exception:
    """Reject only what the server refuses for good about this recipient or this content.

    The sender is the same for all mails, and so are relaying, log-in and host name: an operator can mend those.
    """
    reason = _reason(reply, stage)
    enhanced = ENHANCED.match(reply.message)
    if reply.code == SERVICE_CLOSING or (enhanced and enhanced[0] == ENOUGH_ON_THIS_CONNECTION):
        return _lost(stage, reason)
    if stage == "MAIL":
        return ServerUnavailable(reason)
    return Rejected(reason) if reply.code >= PERMANENT and _about_the_mail(stage, reply) else Deferred(reason)


def _about_the_mail(stage: str, reply: SMTPResponse) -> bool:
    enhanced = ENHANCED.match(reply.message)
    if enhanced and enhanced[0] not in UNSPECIFIC:
        return bool(ABOUT_THE_MAIL.fullmatch(enhanced[0]))
    if enhanced and enhanced[0].startswith("5.7.") and stage == "RCPT":
        return False  # a policy about who may send, not about the content
    return reply.code in REFUSING_CODES[stage] and not ABOUT_US.search(ADDRESSES.sub("", reply.message))


def _reason(reply: SMTPResponse | SMTPResponseException, stage: str) -> str:
    """Return the reply's codes with words of our own, and the stage; the reply's text may hold addresses."""
    enhanced = ENHANCED.match(reply.message)
    codes = [str(reply.code), *([enhanced[0]] if enhanced else [])]
    text = ADDRESSES.sub("", reply.message)
    told = [words for topic, words in WORDS_FOR_TEXT.items() if re.search(topic, text, re.IGNORECASE)]
    exact, general = ([table[code] for code in reversed(codes) if code in table] for table in (WORDS, GENERAL_WORDS))
    words = [*exact, *told, *general][:1]
    reason = " ".join([*codes, *words])
    return reason if words and stage == "AUTH" else f"{reason} at {stage}"
