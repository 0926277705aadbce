"""A mail server that forgets nothing, as a program to kill: `python -m tests.servers.mail_sink PORT FILE`.

Each mail is a line of JSON in FILE before the server says that it took it, so a kill between the two makes a repeat
and loses nothing.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from email import message_from_bytes
from email.policy import SMTPUTF8
from pathlib import Path
from typing import TYPE_CHECKING

from aiosmtpd.smtp import SMTP

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope, Session

CODE = re.compile(r"^(\d{6})$", re.MULTILINE)


class Sink:
    """Writes each mail's recipient and code."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("a", encoding="utf-8")

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's
        """Take the mail."""
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        part = message_from_bytes(content, policy=SMTPUTF8).get_body(("plain",))
        assert part is not None
        text = str(part.get_content()).replace("\r\n", "\n")
        line = {"to": str(envelope.rcpt_tos[0]), "code": CODE.findall(text)[0], "at": time.time()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        return "250 2.0.0 taken"


async def main(port: int, file: Path) -> None:
    """Listen until killed."""
    sink = Sink(file)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(sink, hostname="localhost", enable_SMTPUTF8=True, loop=loop), "127.0.0.1", port, backlog=128
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
