"""A TCP proxy in a thread: latency, cuts, half-open connections and refusals, without root."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.servers.listener import HOST, Listener

if TYPE_CHECKING:
    import socket
    import ssl
    from pathlib import Path

CHUNK = 65536


class Proxy(Listener):
    """Stands before a server that listens on a port of this machine or on a Unix socket.

    `delay` is what every piece of data waits in each direction. It changes while connections are open. With `tls` its
    clients speak TLS, and the server does not.
    """

    def __init__(self, target: int | Path, tls: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self.delay = 0.0
        self._target = target
        self._tls = tls
        self._flowing = asyncio.Event()
        self._flowing.set()

    def hold(self) -> None:
        """Let nothing through in either direction: connections open and stay open, and nothing is answered."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def flow(self, *, forget: bool = False) -> None:
        """Let data through again; with `forget` only on new connections, as after a network that lost the old ones."""
        if forget:
            self._flowing = asyncio.Event()  # the pumps of old connections wait for the old event, which is never set
        self._loop.call_soon_threadsafe(self._flowing.set)

    def heal(self) -> None:
        """Undo every fault."""
        self.delay = 0.0
        self.flow()
        if self._server is None:
            self.accept()

    async def _serve(self, listener: socket.socket) -> asyncio.Server:
        return await asyncio.start_server(self._connection, sock=listener, ssl=self._tls)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        flowing = self._flowing
        self._open.add(writer.transport)
        with suppress(OSError, asyncio.CancelledError):  # cancelled at the very end only
            await flowing.wait()
            if isinstance(self._target, int):
                there, away = await asyncio.open_connection(HOST, self._target)
            else:
                there, away = await asyncio.open_unix_connection(self._target)
            self._open.add(away.transport)
            try:
                await asyncio.gather(self._pump(reader, away, flowing), self._pump(there, writer, flowing))
            finally:
                self._open.discard(away.transport)
                away.close()
        self._open.discard(writer.transport)
        writer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
        try:
            while data := await source.read(CHUNK):
                if self.delay:
                    await asyncio.sleep(self.delay)  # the slow network that it plays
                await flowing.wait()
                sink.write(data)
                await sink.drain()
        finally:
            sink.close()
