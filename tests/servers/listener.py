"""What a server in a thread of the tests is made of."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING, Self

from tests.servers.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

HOST = "127.0.0.1"
PATIENCE = 10.0


class Listener:
    """Listens around the context, in a loop of its own, on a port that stays its own; used from the test's thread."""

    def __init__(self) -> None:
        self.port = free_ports()
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=type(self).__name__, daemon=True)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.BaseTransport] = set()

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

    def accept(self) -> None:
        """Listen, at first and after `refuse`."""
        self._run(self._listen())

    def refuse(self) -> None:
        """Cut every connection and refuse new ones, until `accept`."""
        self._run(self._close())

    def cut(self) -> None:
        """Cut every connection; new ones are let through."""
        self._run(self._cut())

    async def _serve(self, listener: socket.socket) -> asyncio.Server:
        """Serve what connects; `_open` holds the transports that are open."""
        raise NotImplementedError

    def _run(self, work: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _listen(self) -> None:
        listener = socket.create_server((HOST, self.port), backlog=128)
        self._server = await self._serve(listener)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    async def _cut(self) -> None:
        for transport in list(self._open):
            assert isinstance(transport, asyncio.WriteTransport)
            transport.abort()
        await asyncio.sleep(0)  # one turn of the loop: the transports close in it

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def vouch_for_ourselves(folder: Path) -> ssl.SSLContext:
    """Make a certificate for this machine that vouches for itself, `cert.pem`; return it as a server shows it."""
    key, pem = folder / "key.pem", folder / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*make, "-keyout", str(key), "-out", str(pem)], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, key)
    return context
