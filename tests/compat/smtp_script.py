"""An SMTP server that speaks as its script says: slow, poor, moody, strict. It keeps what it accepts."""

from __future__ import annotations

import base64
import hmac
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.policy import SMTP
from typing import TYPE_CHECKING, Self

from tests.servers.ports import free_ports

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from email.message import EmailMessage

    Script = Callable[["Session", str, str], str | None]

MODERN = ("PIPELINING", "SIZE 10240000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")
HANG_UP = "hang up"  # a script's answer that is none: the connection ends
DEFAULTS = {
    "CONNECT": "220 mail.example.net ESMTP",
    "HELO": "250 mail.example.net",
    "MAIL": "250 2.1.0 sender ok",
    "RCPT": "250 2.1.5 recipient ok",
    "DATA": "354 go ahead",
    ".": "250 2.0.0 accepted",
    "RSET": "250 2.0.0 forgotten",
    "NOOP": "250 2.0.0 ok",
    "QUIT": "221 2.0.0 bye",
    "STARTTLS": "220 2.0.0 ready",
}


@dataclass
class Session:
    """One connection, as far as it has come."""

    number: int  # of the server's connections, from 1
    name: str = ""  # what the client calls itself
    secure: bool = False
    logged_in: bool = False
    accepted: int = 0  # mails
    sender: str = ""
    recipient: str = ""
    commands: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Mail:
    """One accepted mail."""

    session: Session = field(repr=False)
    recipient: str
    at: float
    content: bytes = field(repr=False)

    @property
    def message(self) -> EmailMessage:
        """The mail, parsed."""
        return message_from_bytes(self.content, policy=SMTP)

    @property
    def text(self) -> str:
        """The text part."""
        part = self.message.get_body(("plain",))
        assert part is not None
        return str(part.get_content())

    @property
    def code(self) -> str:
        """The code, alone on its line of the text part."""
        [code] = [line for line in self.text.splitlines() if line.isdigit()]
        return code


def usual(_session: Session, _verb: str, _argument: str) -> None:
    """Leave every reply as it is."""


class ScriptedServer:
    """Listens while its context lasts.

    `script` is asked at each step, by its verb ("CONNECT", "." after the content, "CLOSED" at the end), for a reply;
    None is the usual one, HANG_UP ends the connection. A mail whose "." is answered by 250 or HANG_UP is kept.
    `extensions` are those after EHLO; none at all is a server that knows only HELO. `mechanisms` with a `login` ask for
    AUTH; `context` offers STARTTLS, or `implicit` TLS. `slow` waits so many seconds before each reply to a verb, or at
    "" before every one. All may be changed while it runs; `port` is one that is free.
    """

    def __init__(  # noqa: PLR0913 - by name
        self,
        *,
        script: Script = usual,
        extensions: tuple[str, ...] = MODERN,
        login: tuple[str, str] | None = None,
        mechanisms: tuple[str, ...] = ("PLAIN", "LOGIN"),
        context: ssl.SSLContext | None = None,
        implicit: bool = False,
        host: str = "127.0.0.1",
        slow: dict[str, float] | None = None,
        port: int = 0,
    ) -> None:
        self.script = script
        self.login = login
        self.mails: list[Mail] = []
        self.sessions: list[Session] = []
        self.port = port or free_ports()
        self.host = host
        self.extensions = extensions
        self.mechanisms = mechanisms
        self.context = context
        self.slow = slow or {}
        self._implicit = implicit
        self._ended = threading.Event()
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()

    def __enter__(self) -> Self:
        """Listen."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server((self.host, self.port), family=family, backlog=64)
        threading.Thread(target=self._accept, name="smtp script", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no longer, and end every connection."""
        self._ended.set()
        assert self._listener is not None
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End every connection."""
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def to(self, recipient: str) -> list[Mail]:
        """Return the mails that were accepted for a recipient."""
        return [mail for mail in list(self.mails) if mail.recipient == recipient]

    def codes(self, recipient: str) -> list[str]:
        """Return the codes that were mailed to a recipient."""
        return [mail.code for mail in self.to(recipient)]

    def said(self, verb: str) -> int:
        """Return how often clients have said a verb."""
        return sum(command.split(" ")[0].upper() == verb for one in list(self.sessions) for command in one.commands)

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            session = Session(len(self.sessions) + 1)
            self.sessions.append(session)
            threading.Thread(target=self._serve, args=(connection, session), daemon=True).start()

    def _serve(self, connection: socket.socket, session: Session) -> None:
        with suppress(OSError, EOFError):
            connection.settimeout(120)
            self._open.add(connection)
            if self._implicit:
                connection = self.secured(connection)
                session.secure = True
            _Dialogue(self, connection, session).run()
        self._open.discard(connection)
        self.script(session, "CLOSED", "")
        with suppress(OSError):
            connection.close()

    def reply(self, session: Session, verb: str, argument: str) -> str:
        """Return what the server says, after its time."""
        self._ended.wait(self.slow.get(verb, self.slow.get("", 0.0)))
        if self._ended.is_set():
            return HANG_UP
        scripted = self.script(session, verb, argument)
        if scripted is not None:
            return scripted
        if verb == "EHLO":
            return self._hello(session)
        if verb == "MAIL" and self.login is not None and not session.logged_in:
            return "530 5.7.0 authentication required"
        return DEFAULTS.get(verb, "502 5.5.1 what?")

    def _hello(self, session: Session) -> str:
        if not self.extensions:
            return "502 5.5.1 no EHLO here"
        offered = ["mail.example.net", *self.extensions]
        if self.context is not None and not session.secure:
            offered.append("STARTTLS")
        if self.login is not None:
            offered.append(f"AUTH {' '.join(self.mechanisms)}")
        return "\r\n".join([*(f"250-{one}" for one in offered[:-1]), f"250 {offered[-1]}"])

    def secured(self, connection: socket.socket) -> ssl.SSLSocket:
        """Encrypt a connection."""
        assert self.context is not None
        self._open.discard(connection)
        encrypted = self.context.wrap_socket(connection, server_side=True)
        self._open.add(encrypted)
        return encrypted


class _Dialogue:
    """One connection's dialogue, to its end."""

    def __init__(self, server: ScriptedServer, connection: socket.socket, session: Session) -> None:
        self._server = server
        self._session = session
        self._connection = connection
        self._file = connection.makefile("rb")

    def run(self) -> None:
        """Speak until one side leaves."""
        if not self._say(self._server.reply(self._session, "CONNECT", "")):
            return
        while line := self._file.readline():
            text = line.decode("latin-1").rstrip("\r\n")
            self._session.commands.append(text)
            verb, _, argument = text.partition(" ")
            if not self._command(verb.upper(), argument):
                return

    def _command(self, verb: str, argument: str) -> bool:
        """Answer one command; return whether the connection goes on."""
        session = self._session
        if verb in {"EHLO", "HELO"}:
            session.name = argument
        elif verb == "MAIL":
            session.sender = argument
        elif verb == "RCPT":
            session.recipient = argument.partition("<")[2].partition(">")[0]
        elif verb == "AUTH":
            return self._say(self._authenticate(argument))
        reply = self._server.reply(session, verb, argument)
        goes_on = self._say(reply)
        if verb == "DATA" and reply.startswith("354"):
            return self._content()
        if verb == "STARTTLS" and reply.startswith("220"):
            self._connection = self._server.secured(self._connection)
            self._file = self._connection.makefile("rb")
            session.secure = True
        return goes_on and verb != "QUIT" and not reply.startswith("421")

    def _content(self) -> bool:
        lines = []
        while (line := self._file.readline()) != b".\r\n":
            if not line:
                return False
            lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
        reply = self._server.reply(self._session, ".", "")
        if reply == HANG_UP or reply.startswith("250"):
            self._session.accepted += 1
            mail = Mail(self._session, self._session.recipient, time.time(), b"".join(lines))
            self._server.mails.append(mail)
        return self._say(reply) and not reply.startswith("421")

    def _authenticate(self, argument: str) -> str:
        scripted = self._server.script(self._session, "AUTH", argument)
        if scripted is not None or self._server.login is None:
            return scripted or "503 5.5.1 no log-in here"
        user, password = self._server.login
        mechanism, _, first = argument.partition(" ")
        if mechanism == "PLAIN":
            right = base64.b64decode(first or self._ask("")).decode() == f"\0{user}\0{password}"
        elif mechanism == "LOGIN":
            given = base64.b64decode(first).decode() if first else self._ask_text("Username:")
            right = (given, self._ask_text("Password:")) == (user, password)
        else:
            challenge = "<1896.697170952@mail.example.net>"
            digest = hmac.new(password.encode(), challenge.encode(), "md5").hexdigest()
            right = self._ask_text(challenge) == f"{user} {digest}"
        self._session.logged_in = right
        return "235 2.7.0 welcome" if right else "535 5.7.8 bad credentials"

    def _ask(self, prompt: str) -> str:
        self._say(f"334 {base64.b64encode(prompt.encode()).decode()}")
        line = self._file.readline()
        if not line:
            raise EOFError
        return line.decode().strip()

    def _ask_text(self, prompt: str) -> str:
        return base64.b64decode(self._ask(prompt)).decode()

    def _say(self, reply: str) -> bool:
        """Say it; return whether the connection goes on."""
        if reply == HANG_UP:
            self._connection.shutdown(socket.SHUT_RDWR)
            return False
        self._connection.sendall(reply.encode() + b"\r\n")
        return True
