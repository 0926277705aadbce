"""The dialogue of mails over an SMTP connection that is open, encrypted and logged in.

Commands leave together where the server offers PIPELINING (RFC 2920): a mail then takes two round trips and not four.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

from aiosmtplib import SMTPReadTimeoutError, SMTPResponse, SMTPServerDisconnected

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_REPLY_BYTES = 64 * 1024
MALFORMED = -1  # the code of what is no reply
GO_ON = 354


class Dialogue(asyncio.Protocol):
    """Sends commands and reads their replies, in order; takes the connection over from who has logged in.

    One task uses it at a time. What a server says unasked ends the connection: it is about to close it anyway.
    """

    def __init__(self, transport: asyncio.Transport, *, pipelining: bool) -> None:
        self.pipelining = pipelining
        self._transport = transport
        self._arrived = b""
        self._replies: deque[SMTPResponse] = deque()
        self._owed = 0  # replies to commands that have left
        self._failure: Exception | None = None
        self._waiting: asyncio.Future[None] | None = None
        transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return self._failure is None and not self._transport.is_closing()

    def send(self, *commands: bytes) -> None:
        """Send commands, without their line ends; each has a reply."""
        if self.is_open:
            self._owed += len(commands)
            self._transport.write(b"\r\n".join((*commands, b"")))

    async def reply(self, seconds: float) -> SMTPResponse:
        """Return the next reply; raises SMTPException when there is none in time, or no connection any more."""
        if not self._replies:
            if not self.is_open:
                raise self._failure or SMTPServerDisconnected("closed")
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            timer = loop.call_later(seconds, self._fail, SMTPReadTimeoutError("no reply"))
            try:
                await self._waiting
            finally:
                timer.cancel()
                self._waiting = None
        if not self._replies:
            raise self._failure or SMTPServerDisconnected("closed")
        return self._replies.popleft()

    async def quit(self, seconds: float) -> None:
        """Take leave of the server and close."""
        self.send(b"QUIT")
        await self.reply(seconds)
        self.close()

    def close(self) -> None:
        """Close the connection without a word."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take in what the server says."""
        self._arrived += data
        if len(self._arrived) > MOST_REPLY_BYTES:
            self._fail(SMTPServerDisconnected("too long a reply"))
        while (size := _reply_size(self._arrived)) and self._owed:
            self._owed -= 1
            self._replies.append(_reply(self._arrived[:size].splitlines()))
            self._arrived = self._arrived[size:]
        if self._arrived and not self._owed:
            self._fail(SMTPServerDisconnected("unasked"))
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let who waits go."""
        lost = SMTPServerDisconnected("lost")
        lost.__cause__ = exc
        self._fail(lost)

    def _fail(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        self._transport.close()
        self._wake()

    def _wake(self) -> None:
        ready = self._replies or self._failure is not None
        if ready and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def take_over(transport: asyncio.BaseTransport | None, *, pipelining: bool) -> Dialogue:
    """Return the dialogue over the open connection of another protocol."""
    if transport is None or transport.is_closing():
        raise SMTPServerDisconnected("lost")
    return Dialogue(cast("asyncio.Transport", transport), pipelining=pipelining)


def content_lines(content: bytes) -> bytes:
    """Return a message of CRLF lines as it follows DATA, its end included, without the last line's end.

    A line's first dot is doubled (RFC 5321, 4.5.2).
    """
    return (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:] + b"."


def _reply_size(arrived: bytes) -> int:
    """Return how many bytes the first reply has, 0 while it is incomplete."""
    begin = 0
    while (end := arrived.find(b"\n", begin) + 1) > 0:
        if arrived[begin + 3 : begin + 4] != b"-":
            return end
        begin = end
    return 0


def _reply(lines: Iterable[bytes]) -> SMTPResponse:
    parts = [(line[:3], line[4:].strip()) for line in lines]
    text = b"\n".join(part for _, part in parts).decode(errors="replace")
    code = parts[-1][0]
    return SMTPResponse(int(code) if code.isdigit() else MALFORMED, text)
