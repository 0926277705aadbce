"""A mail server that takes every mail and notes when: the operator's, as the bench plays it, in a process of its own.

It offers what a plain relay does (PIPELINING, 8BITMIME). A line on its control port asks something of it: `hold` has
it keep back its answers to contents until `release`, `dump` returns for each recipient the code of the last mail and
the time of its acceptance (CLOCK_MONOTONIC, the same in all processes of one machine) as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from time import monotonic
from typing import cast

import uvloop

HOST = "127.0.0.1"
CODE_LINE = re.compile(rb"^\s*(\d{6})\s*$", re.MULTILINE)
EXTENSIONS = b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n"


class Sink:
    """What all connections share: the mails taken, and whether answers are held back."""

    def __init__(self) -> None:
        self.taken: dict[str, tuple[str, float]] = {}
        self.held: list[Conversation] | None = None

    def told(self, word: str) -> bytes:
        """Do what a line on the control port asks, and return what to answer."""
        if word == "hold":
            self.held = []
        elif word == "release":
            held, self.held = self.held or [], None
            for conversation in held:
                conversation.accept()
        return (json.dumps(self.taken if word == "dump" else None) + "\n").encode()


class Conversation(asyncio.Protocol):
    """One SMTP connection (RFC 5321, RFC 2920)."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._arrived = b""
        self._in_content = False
        self._recipient = ""
        self._content = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        """Answer every command that is complete, in one write."""
        self._arrived += data
        answers = b""
        while (end := self._arrived.find(b"\r\n.\r\n" if self._in_content else b"\r\n")) >= 0:
            piece = self._arrived[:end]
            self._arrived = self._arrived[end + (5 if self._in_content else 2) :]
            if self._in_content:
                self._in_content = False
                self._content = piece
                self._take()
            else:
                answers += self._answer(piece)
        if answers:
            self._transport.write(answers)

    def accept(self) -> None:
        """Answer for the content that came last."""
        code = CODE_LINE.search(self._content)
        self._sink.taken[self._recipient] = (code.group(1).decode() if code else "", monotonic())
        self._transport.write(b"250 taken\r\n")

    def _take(self) -> None:
        if self._sink.held is None:
            self.accept()
        else:
            self._sink.held.append(self)

    def _answer(self, command: bytes) -> bytes:
        verb = command[:4].upper()
        if verb == b"EHLO":
            return EXTENSIONS
        if verb == b"RCPT":
            self._recipient = command.partition(b"<")[2].partition(b">")[0].decode()
        if verb == b"DATA":
            self._in_content = True
            return b"354 go on\r\n"
        return b"221 bye\r\n" if verb == b"QUIT" else b"250 fine\r\n"


async def serve(port: int) -> None:
    """Take mails on `port` and orders on the next one, until killed."""
    sink, loop = Sink(), asyncio.get_running_loop()

    async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sink.told((await reader.readline()).decode().strip()))
        await writer.drain()
        writer.close()

    await loop.create_server(lambda: Conversation(sink), HOST, port)
    server = await asyncio.start_server(control, HOST, port + 1)
    await server.serve_forever()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it owes nobody an orderly end
    uvloop.run(serve(int(sys.argv[1])))
