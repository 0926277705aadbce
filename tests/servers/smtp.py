"""A real SMTP server in a thread, which keeps what it is sent and misbehaves when it is told to."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from dataclasses import dataclass, field
from email import message_from_bytes
from email.policy import SMTPUTF8
from typing import TYPE_CHECKING, Literal

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from tests.servers.listener import HOST, PATIENCE, Listener

if TYPE_CHECKING:
    import socket
    import ssl
    from email.message import EmailMessage

    from aiosmtpd.smtp import Envelope, Session

Stage = Literal["MAIL", "RCPT", "DATA"]
STALL, HANG_UP = "stall", "hang up"  # tricks that are no replies


@dataclass(frozen=True, slots=True)
class Received:
    """One mail that was taken: its envelope and what it said."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes = field(repr=False)

    @property
    def message(self) -> EmailMessage:
        """The mail, parsed."""
        return message_from_bytes(self.content, policy=SMTPUTF8)

    @property
    def text(self) -> str:
        """The text part."""
        part = self.message.get_body(("plain",))
        assert part is not None
        return str(part.get_content()).replace("\r\n", "\n")


class SmtpServer(Listener):
    """Takes mails around the context, at `url`.

    Tricks are played in the order in which they were asked for, each once, at the first mail that reaches its stage.
    `login` makes it ask for that user and password, `tls` speak TLS from the start and `starttls` insist on it, and no
    more than `most` connections are served at once. It offers `pipelining`, as most servers do.
    """

    def __init__(
        self,
        login: tuple[str, str] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        starttls: ssl.SSLContext | None = None,
        most: int = 1000,
        pipelining: bool = True,
    ) -> None:
        super().__init__()
        self.mails: list[Received] = []
        self.names: set[str] = set()  # by which clients have called themselves
        self._login, self._tls, self._starttls, self._most = login, tls, starttls, most
        self._pipelining = pipelining
        self._served = 0
        self._tricks: deque[tuple[Stage, str]] = deque()
        self._unknown: set[str] = set()
        self._news = threading.Condition()
        self._go_on = asyncio.Event()

    @property
    def url(self) -> str:
        """What VESTIBULE_MAIL_URL needs to reach it."""
        user = "" if self._login is None else ":".join(self._login) + "@"
        return f"smtp://{user}{HOST}:{self.port}"

    def answer(self, reply: str, *, at: Stage = "DATA", times: int = 1) -> None:
        """Give the reply, such as `451 4.3.0 later`, instead of taking the mail, to the next so many mails."""
        self._tricks.extend([(at, reply)] * times)

    def know_nobody(self, recipient: str) -> None:
        """Refuse this recipient for good, whoever else gets mail meanwhile."""
        self._unknown.add(recipient)

    def stall(self, *, at: Stage = "DATA") -> None:
        """Say nothing to the next mail until `go_on`, then take it."""
        self._loop.call_soon_threadsafe(self._go_on.clear)
        self._tricks.append((at, STALL))

    def go_on(self) -> None:
        """Answer every mail that is stalled."""
        self._loop.call_soon_threadsafe(self._go_on.set)

    def hang_up(self, *, at: Stage = "DATA") -> None:
        """Cut the next mail's connection; at DATA the mail is taken and only its answer lost."""
        self._tricks.append((at, HANG_UP))

    def say(self, line: str) -> None:
        """Say something to every client that nobody has asked for."""
        for transport in tuple(self._open):
            assert isinstance(transport, asyncio.Transport)
            self._loop.call_soon_threadsafe(transport.write, f"{line}\r\n".encode())

    def refuse(self) -> None:
        """Close the port and every connection, until `accept`."""
        self.go_on()
        super().refuse()

    def wait_for(self, number: int, timeout: float = PATIENCE) -> list[Received]:
        """Return all mails once there are so many; fails the test after the time-out. Blocks: not on a loop."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.mails) >= number, timeout), f"{len(self.mails)} of {number}"
            return list(self.mails)

    def take(self, mail: Received) -> None:
        """Keep a mail."""
        with self._news:
            self.mails.append(mail)
            self._news.notify_all()

    async def handle_EHLO(  # noqa: N802 - aiosmtpd's name and signature
        self, _server: SMTP, session: Session, _envelope: Envelope, name: str, responses: list[str]
    ) -> list[str]:
        """Note who comes."""
        session.host_name = name
        self.names.add(name)
        return [responses[0], *(["250-PIPELINING"] if self._pipelining else []), *responses[1:]]

    async def handle_MAIL(  # noqa: N802 - as above
        self, server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Take the sender."""
        reply = await self._play("MAIL", server)
        if reply is None:
            envelope.mail_from = address
            envelope.mail_options.extend(options)
        return reply or "250 2.1.0 sender"

    async def handle_RCPT(  # noqa: N802 - as above
        self, server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Take a recipient."""
        reply = "550 5.1.1 no such user" if address in self._unknown else await self._play("RCPT", server)
        if reply is None:
            envelope.rcpt_tos.append(address)
        return reply or "250 2.1.5 recipient"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - as above
        """Take the mail."""
        reply = await self._play("DATA", server)
        if reply is not None:
            return reply
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        self.take(Received(envelope.mail_from or "", tuple(map(str, envelope.rcpt_tos)), content))
        return "250 2.0.0 taken"

    async def _play(self, stage: Stage, server: SMTP) -> str | None:
        trick = next((what for at, what in self._tricks if at == stage), None)
        if trick is None:
            return None
        self._tricks.remove((stage, trick))
        if trick == STALL:
            await self._go_on.wait()
        elif trick == HANG_UP and isinstance(server.transport, asyncio.Transport):
            server.transport.abort()
        else:
            return trick
        return None

    async def _serve(self, listener: socket.socket) -> asyncio.Server:
        return await self._loop.create_server(self._connection, sock=listener, ssl=self._tls)

    def _connection(self) -> SMTP:
        smtp = self
        self.connections += 1

        class Connection(SMTP):
            """Tells the server about its transport, so that it can be cut."""

            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                smtp._open.add(transport)
                super().connection_made(transport)

            def connection_lost(self, error: Exception | None) -> None:
                smtp._open.discard(self.transport)
                super().connection_lost(error)

            async def _handle_client(self) -> None:
                smtp._served += 1
                try:
                    if smtp._served > smtp._most:
                        await self.push("421 4.7.0 too many connections")
                    else:
                        await super()._handle_client()
                finally:
                    smtp._served -= 1

        return Connection(
            self,
            hostname="localhost",
            enable_SMTPUTF8=True,
            tls_context=self._starttls,
            require_starttls=self._starttls is not None,
            auth_required=self._login is not None,
            auth_require_tls=self._login is None,  # nobody is asked to log in then
            authenticator=self._authenticate,
            loop=self._loop,
        )

    def _authenticate(self, *arguments: object) -> AuthResult:
        given = arguments[-1]
        assert isinstance(given, LoginPassword)
        right = (given.login.decode(), given.password.decode()) == self._login
        return AuthResult(success=right, handled=right)  # unhandled: aiosmtpd answers 535 itself
