"""The development mail server: keeps what it is sent in a folder, for people to read."""

from __future__ import annotations

import asyncio
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

from service.embedded.data_dir import BadEnvironment, private
from service.embedded.launcher import Program, ServerProcess, wheel

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
    return CaughtMail(
        id=mail_id,
        to=_header(message, ENVELOPE_TO),
        subject=_header(message, "Subject"),
        date=datetime.fromtimestamp(int(mail_id.partition("-")[0]) / 1e9, UTC),
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
        with open(new, "xb", opener=private) as file:
            file.write(ENVELOPE_TO.encode() + b": " + envelope + b"\r\n" + content)
        new.rename(folder / (mail_id + SUFFIX))
    finally:
        new.unlink(missing_ok=True)
    for old in names(folder)[:-KEPT]:
        (folder / (old + SUFFIX)).unlink(missing_ok=True)
    return mail_id


def names(folder: Path) -> list[str]:
    """Return the ids of all mails, oldest first."""
    with suppress(FileNotFoundError):
        found = [entry.removesuffix(SUFFIX) for entry in os.listdir(folder) if entry.endswith(SUFFIX)]  # noqa: PTH208 - twice as fast
        return sorted(name for name in found if ID.fullmatch(name))
    return []


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
PORTS = range(18025, 18525)  # below 32768: the kernel gives none of those to clients, so the port stays ours
MAIL_BYTES = 1 << 20
IDLE_SECONDS = 60.0
FULL = "452 4.3.1 no space left for mails"


class MailCatcher(ServerProcess):
    """The catcher under DATA_DIR/mails, which keeps its port from start to start."""

    name, setting = "catcher", "mail_url"

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.folder = self.data_dir / "mails"
        self._kept_port = self.data_dir / "catcher.port"

    @property
    def url(self) -> str:
        """Where mails are sent to; the first start chooses it."""
        return f"smtp://{HOST}:{self._port()}"

    def ready(self) -> bool:
        """Return whether it greets."""
        try:
            with socket.create_connection((HOST, self._port()), timeout=1.0) as client:
                return client.recv(3) == b"220"
        except OSError:
            return False

    def prepare(self) -> Program:
        """Make its folder and listen for it, on the port of the last start if that is free."""
        wheel("aiosmtpd", "smtp.py")
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for port in (self._port() or PORTS[0], *PORTS):
            with suppress(OSError):
                listener = socket.create_server((HOST, port), backlog=128)
                break
        else:
            raise BadEnvironment("no port is free for the mail catcher: set VESTIBULE_MAIL_URL")
        self._kept_port.write_text(str(port), encoding="ascii")
        descriptor = listener.detach()
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - the library's signature
        argv = [sys.executable, "-P", "-m", "service.embedded.mail_catcher", str(descriptor), str(self.folder)]
        return Program(argv, {"LC_ALL": "C.UTF-8"})

    def _port(self) -> int:
        """Return the port of the last start, 0 before the first."""
        try:
            return int(self._kept_port.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0


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


async def _serve(listener: socket.socket, folder: Path) -> None:
    """Serve on a listening socket until SIGTERM."""
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
    await loop.create_server(connection, sock=listener)
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()  # from Python 3.12 on `serve_forever` would wait for the last client


if __name__ == "__main__":
    asyncio.run(_serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2])))
