"""The development mail server: takes every mail, delivers none, and keeps them for the page /dev/mail."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from service.embedded.caught_mails import keep_mail
from service.embedded.errors import BadEnvironment, one_line
from service.embedded.launcher import ServerProcess, wheel
from service.embedded.spawn import Program, stay

if TYPE_CHECKING:
    from aiosmtpd.smtp import SMTP, Envelope, Session

HOST = "127.0.0.1"
FIRST_PORT, PORTS = 20000, 12000  # below 32768: the kernel gives none of those to clients, so the port stays ours
TRIES = 50
MAIL_BYTES = 1 << 20
BACKLOG = 128
IDLE_SECONDS = 60.0
FULL = "452 4.3.1 no space left for mails"
KEPT_PORT = "catcher.port"


class MailCatcher(ServerProcess):
    """The catcher under DATA_DIR/mails; it keeps its port, and mails wait in the socket while it is started again."""

    name = "catcher"

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self._listener: socket.socket | None = None

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
            if self._listener is None:
                self._listener = _listen(self._port())
                (self.data_dir / KEPT_PORT).write_text(str(self._listener.getsockname()[1]), encoding="ascii")
        descriptor = self._listener.fileno()
        argv = [sys.executable, "-P", "-m", "service.embedded.mail_catcher", str(descriptor), str(self.folder)]
        return Program(argv, {"LC_ALL": "C.UTF-8"}, stay, descriptors=[descriptor])

    def close(self) -> None:
        """Give up the port, once the catcher has been stopped."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _port(self) -> int:
        """Return the port of the last start, or the one to try first: another DATA_DIR tries another."""
        try:
            return int((self.data_dir / KEPT_PORT).read_text(encoding="ascii"))
        except (OSError, ValueError):
            digest = hashlib.sha256(str(self.data_dir).encode()).digest()
            return FIRST_PORT + int.from_bytes(digest[:4]) % PORTS


class Keeper:
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
            Keeper(folder),
            data_size_limit=MAIL_BYTES,
            enable_SMTPUTF8=True,
            hostname="localhost",
            ident="Vestibule",
            timeout=IDLE_SECONDS,
        )

    loop, told = asyncio.get_running_loop(), asyncio.Event()
    await loop.create_server(connection, sock=listener, backlog=BACKLOG)
    loop.add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()  # from Python 3.12 on `serve_forever` would end with the last client, whatever it was told


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
