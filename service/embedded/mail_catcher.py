"""The development mail server: keeps what it is sent in a folder, for people to read."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import SMTPUTF8
from pathlib import Path
from typing import TYPE_CHECKING

from service.embedded.data_dir import BadEnvironment, one_line
from service.embedded.launcher import Program, ServerProcess, stay, wheel

if TYPE_CHECKING:
    from email.message import EmailMessage

    from aiosmtpd.smtp import SMTP, Envelope, Session

KEPT = 1000  # mails; a development machine needs no more, and the folder is listed for each page
ID = re.compile(r"\d{20}-[0-9a-f]{8}")
SUFFIX = ".eml"
ENVELOPE_TO = "X-Envelope-To"
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class CaughtMail:
    """One mail: `to` is whom the envelope named, `date` when it was caught (UTC). Texts are as sent: escape them.

    `to` and `subject` hold no control characters, whatever the headers held.
    """

    id: str
    to: str = field(repr=False)
    subject: str = field(repr=False)
    date: datetime
    text: str = field(repr=False)
    html: str | None = field(repr=False)


def list_mails(folder: Path, limit: int = 100) -> list[CaughtMail]:
    """Return the newest mails, newest first; none where there is no folder."""
    read = (read_mail(folder, name) for name in reversed(names(folder)[-limit:] if limit > 0 else []))
    return [mail for mail in read if mail is not None]


def read_mail(folder: Path, mail_id: str) -> CaughtMail | None:
    """Return one mail; None when there is none of that id, or no longer."""
    if not ID.fullmatch(mail_id):  # it comes from a URL, and names a file
        return None
    try:
        message = message_from_bytes((folder / (mail_id + SUFFIX)).read_bytes(), policy=SMTPUTF8)
    except FileNotFoundError:
        return None
    nanoseconds = int(mail_id.split("-", 1)[0])
    return CaughtMail(
        id=mail_id,
        to=_header(message, ENVELOPE_TO),
        subject=_header(message, "Subject"),
        date=datetime.fromtimestamp(nanoseconds / 1e9, UTC),
        text=_part(message, "plain") or "",
        html=_part(message, "html"),
    )


def keep_mail(folder: Path, recipients: list[str], content: bytes) -> str:
    """Write a mail as one file that appears whole, drop the oldest beyond `KEPT`, and return its id."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mail_id = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
    envelope = CONTROLS.sub(" ", ", ".join(recipients)).encode("utf-8", "surrogateescape")
    new = folder / f".{mail_id}.new"
    try:
        with open(new, "xb", opener=_private) as file:
            file.write(ENVELOPE_TO.encode() + b": " + envelope + b"\r\n" + content)
        new.rename(folder / (mail_id + SUFFIX))
    except OSError:
        new.unlink(missing_ok=True)
        raise
    for old in names(folder)[:-KEPT]:
        with suppress(FileNotFoundError):
            (folder / (old + SUFFIX)).unlink()
    return mail_id


def names(folder: Path) -> list[str]:
    """Return the ids of all mails, oldest first."""
    try:
        found = [entry.removesuffix(SUFFIX) for entry in os.listdir(folder) if entry.endswith(SUFFIX)]  # noqa: PTH208 - twice as fast
    except FileNotFoundError:
        return []
    return sorted(name for name in found if ID.fullmatch(name))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _header(message: EmailMessage, name: str) -> str:
    try:
        value = str(message[name] or "")
    except (ValueError, LookupError, IndexError, AttributeError):  # the parser of the library trips over some headers
        value = ""
    return CONTROLS.sub(" ", value).encode("utf-8", "replace").decode().strip()


def _part(message: EmailMessage, kind: str) -> str | None:
    """Return the body of one kind, in whatever charset it claims, or None."""
    part = message.get_body((kind,))
    if part is None:
        return None
    payload = part.get_payload(decode=True)
    raw = payload if isinstance(payload, bytes) else b""
    try:
        return raw.decode(part.get_content_charset("utf-8"), "replace")
    except LookupError:
        return raw.decode("utf-8", "replace")


HOST = "127.0.0.1"
FIRST_PORT, PORTS = 20000, 12000  # below 32768: the kernel gives none of those to clients, so the port stays ours
TRIES = 50
MAIL_BYTES = 1 << 20
BACKLOG = 128
IDLE_SECONDS = 60.0
FULL = "452 4.3.1 no space left for mails"
KEPT_PORT = "catcher.port"


class MailCatcher(ServerProcess):
    """The catcher under DATA_DIR/mails, which keeps its port from start to start."""

    name, setting = "catcher", "mail_url"

    @property
    def folder(self) -> Path:
        """Where the mails lie."""
        return self.data_dir / "mails"

    @property
    def url(self) -> str:
        """Where mails are sent to; the first start may choose it."""
        return f"smtp://{HOST}:{self._port()}"

    def ready(self) -> bool:
        """Return whether it greets."""
        try:
            with socket.create_connection((HOST, self._port()), timeout=1.0) as client:
                return client.recv(3) == b"220"
        except OSError:
            return False

    def prepare(self) -> Program:
        """Make its folder and listen for it."""
        wheel("aiosmtpd", "smtp.py", executable=False)
        with one_line(self.data_dir):
            self.folder.mkdir(mode=0o700, exist_ok=True)
            listener = _listen(self._port())
            (self.data_dir / KEPT_PORT).write_text(str(listener.getsockname()[1]), encoding="ascii")
        descriptor = listener.detach()
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - the library's signature
        argv = [sys.executable, "-P", "-m", "service.embedded.mail_catcher", str(descriptor), str(self.folder)]
        return Program(argv, {"LC_ALL": "C.UTF-8"}, stay)

    def _port(self) -> int:
        """Return the port of the last start, or the one to try first: another DATA_DIR tries another."""
        try:
            return int((self.data_dir / KEPT_PORT).read_text(encoding="ascii"))
        except (OSError, ValueError):
            digest = hashlib.sha256(str(self.data_dir).encode()).digest()
            return FIRST_PORT + int.from_bytes(digest[:4]) % PORTS


class CatcherHandler:
    """What aiosmtpd asks about each mail; its method names are given."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - as above
        """Keep the mail, or answer that there is no room so that it is sent again later."""
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        try:
            keep_mail(self._folder, [str(recipient) for recipient in envelope.rcpt_tos], content)
        except OSError:
            return FULL
        return "250 2.0.0 caught"


def run(listener: int, folder: Path) -> None:
    """Serve on a listening socket until SIGTERM."""
    asyncio.run(_serve(socket.socket(fileno=listener), folder))


async def _serve(listener: socket.socket, folder: Path) -> None:
    from aiosmtpd.smtp import SMTP  # noqa: PLC0415 - of an extra, and only this process may need it

    def connection() -> asyncio.Protocol:
        return SMTP(
            CatcherHandler(folder),
            data_size_limit=MAIL_BYTES,
            enable_SMTPUTF8=True,
            hostname="localhost",
            ident="Vestibule",
            timeout=IDLE_SECONDS,
        )

    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    await loop.create_server(connection, sock=listener, backlog=BACKLOG)
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()  # from Python 3.12 on `serve_forever` would wait for the last client


def _listen(first: int) -> socket.socket:
    """Bind the wanted port, else one near it, else whichever the kernel has."""
    for port in (first, *(FIRST_PORT + (first + step) % PORTS for step in range(1, TRIES)), 0):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
        else:
            return listener
    raise BadEnvironment("no port is free for the mail catcher: set VESTIBULE_MAIL_URL")


if __name__ == "__main__":
    run(int(sys.argv[1]), Path(sys.argv[2]))
