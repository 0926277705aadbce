"""A TCP proxy in a thread: latency, cuts, half-open connections and refusals, without root."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Coroutine
    from pathlib import Path

HOST = "127.0.0.1"
PATIENCE = 10.0
CHUNK = 65536


class Proxy:
    """Stands before a server that listens on a port of this machine or on a Unix socket; used from the test's thread.

    `delay` is what every piece of data waits in each direction. It changes while connections are open. With `tls` its
    clients speak TLS, and the server does not.
    """

    def __init__(self, target: int | Path, tls: ssl.SSLContext | None = None) -> None:
        self.delay = 0.0
        self.connections = 0
        self.port = 0
        self._target = target
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything."""
        self.refuse()
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def refuse(self) -> None:
        """Cut every connection and refuse new ones, until `accept`."""
        self._run(self._close())

    def accept(self) -> None:
        """Listen again, on the same port."""
        self._run(self._listen())

    def cut(self) -> None:
        """Cut every connection; new ones are let through."""
        self._run(self._cut())

    def hold(self) -> None:
        """Let nothing through in either direction: connections open and stay open, and nothing is answered."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def flow(self, *, forget: bool = False) -> None:
        """Let data through again; with `forget` only on new connections, as after a network that lost the old ones."""
        if forget:
            self._run(self._orphan())
        self._loop.call_soon_threadsafe(self._flowing.set)

    def heal(self) -> None:
        """Undo every fault."""
        self.delay = 0.0
        self.flow()
        if self._server is None:
            self.accept()

    def _run(self, work: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, self.port))
        self.port = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, sock=listener, backlog=128, ssl=self._tls)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    async def _cut(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.sleep(0)  # one turn of the loop: the transports close in it

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _orphan(self) -> None:
        """Keep the open connections, and never move a byte over them again."""
        self._flowing = asyncio.Event()  # the pumps of old connections wait for the old event, which is never set

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        flowing = self._flowing
        self._open.add(writer)
        with suppress(OSError, asyncio.CancelledError):  # cancelled at the very end only
            await flowing.wait()
            if isinstance(self._target, int):
                there, away = await asyncio.open_connection(HOST, self._target)
            else:
                there, away = await asyncio.open_unix_connection(self._target)
            self._open.add(away)
            try:
                await asyncio.gather(self._pump(reader, away, flowing), self._pump(there, writer, flowing))
            finally:
                self._open.discard(away)
                away.close()
        self._open.discard(writer)
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
