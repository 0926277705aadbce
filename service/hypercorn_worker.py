"""Hypercorn as we want it inside one worker: HTTP/1.1 only, and no connection can harm another.

Hypercorn 0.18 (pinned) offers no setting for either, so three of its names are bound to classes of ours, once, in
`harden`; tests/faults/test_hypercorn_worker.py and test_hostile_*.py hold the behaviour at the socket.
"""

from __future__ import annotations

import resource
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import hypercorn.asyncio.run
import hypercorn.protocol
import hypercorn.trio.run
import trio
from hypercorn.asyncio.tcp_server import TCPServer as AsyncioConnection
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.trio.tcp_server import TCPServer as TrioConnection
from loguru import logger

from service.hypercorn_protocol import OneProtocol
from service.listener import BACKLOG

if TYPE_CHECKING:
    from hypercorn.events import Event
    from hypercorn.typing import ConnectionState

KEEP_ALIVE_SECONDS = 5.0  # of silence between requests, and for a request's head from the first byte to the last
WRITE_SECONDS = 5.0  # for one piece of an answer: the kernel takes most of them at once, whoever reads
MOST_CONNECTIONS = 2000  # of one worker, at about 20 KB each
SPARE_FILES = 200  # of those that a process may open, for all that is no connection


class Log:
    """Takes what Hypercorn says; only faults are worth a line, requests are logged by the app."""

    def __init__(self, config: Config) -> None:
        self.config = config

    async def critical(self, message: str, *_: object, **__: object) -> None:
        """Log a fault."""
        logger.opt(exception=True).critical("hypercorn", text=message)

    async def error(self, message: str, *_: object, **__: object) -> None:
        """Log a fault."""
        logger.opt(exception=True).error("hypercorn", text=message)

    async def exception(self, message: str, *_: object, **__: object) -> None:
        """Log a fault and the exception that is being handled."""
        logger.opt(exception=True).error("hypercorn", text=message)

    async def warning(self, message: str, *_: object, **__: object) -> None:
        """Log a warning."""
        logger.warning("hypercorn", text=message)

    async def info(self, message: str, *_: object, **__: object) -> None:
        """Say nothing: the master tells where the service listens."""

    async def debug(self, message: str, *_: object, **__: object) -> None:
        """Say nothing."""

    async def log(self, level: int, message: str, *_: object, **__: object) -> None:
        """Say nothing: Hypercorn uses it for its access log alone."""

    async def access(self, *_: object) -> None:
        """Say nothing: decoded paths can forge lines, and the app logs its requests itself."""


class WorkerConfig(Config):
    """The settings of one worker on an inherited socket, and the number of connections that it holds.

    While `closing` is set every answer says `Connection: close`, so that clients move to another worker without
    ever sending a request into a connection that is being closed.
    """

    include_server_header = False
    keep_alive_timeout = KEEP_ALIVE_SECONDS
    logger_class = Log  # type: ignore[assignment]  # it is called for these methods only
    backlog = BACKLOG  # Hypercorn calls listen() once more on the shared socket

    def __init__(self, listener: int, grace: float, most: int | None = None) -> None:
        super().__init__()
        self.bind = [f"fd://{listener}"]
        self.graceful_timeout = grace
        self.closing = False
        self._most = most_connections() if most is None else most
        self._connections = 0
        self._idle: dict[Guard, None] = {}  # the longest idle first
        self._empty = anyio.Event()

    def opened(self, connection: Guard) -> None:
        """Count a connection in; where there are too many, the one that has been idle for the longest makes room."""
        self._connections += 1
        self._idle[connection] = None
        if self._connections > self._most:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            oldest.hang_up()

    def used(self, connection: Guard, *, idle: bool) -> None:
        """Note that a connection has begun to serve a request, or waits for the next one."""
        self._idle.pop(connection, None)
        if idle:
            self._idle[connection] = None

    def closed(self, connection: Guard) -> None:
        """Count a connection out."""
        self._idle.pop(connection, None)
        self._connections -= 1
        if not self._connections:
            self._empty.set()
            self._empty = anyio.Event()

    async def until_empty(self) -> None:
        """Wait until no connection is open."""
        if self._connections:
            await self._empty.wait()

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        """Add to Hypercorn's headers what sends a client elsewhere."""
        headers: list[tuple[bytes, bytes]] = super().response_headers(protocol)
        if self.closing:
            headers.append((b"connection", b"close"))
        return headers


class Guard:
    """Ends a connection that failed, that does not take its answer, or that is idle when its place is needed."""

    config: Any
    idle_task: Any

    async def run(self) -> None:
        """Serve the connection to its end, which is never an exception but for a cancellation."""
        self.config.opened(self)
        try:
            await super().run()  # type: ignore[misc]  # mixed into Hypercorn's connection classes
        except Exception as error:  # noqa: BLE001 - whatever one peer provokes must not reach the others
            logger.warning("connection failed", error=_innermost(error))
        finally:
            self.config.closed(self)

    async def protocol_send(self, event: Event) -> None:
        """Do what the protocol wants done, and note whether a request is being served."""
        if isinstance(event, Updated):
            self.config.used(self, idle=event.idle)
        await super().protocol_send(event)  # type: ignore[misc]  # as above

    async def _read_data(self) -> None:
        await super()._read_data()  # type: ignore[misc]  # as above
        await self.idle_task.stop()  # the peer has left, and its next request is not waited for

    if TYPE_CHECKING:

        def hang_up(self) -> None:
            """End the connection at once."""


class GuardedAsyncio(Guard, AsyncioConnection):
    """A connection under asyncio or uvloop."""

    async def protocol_send(self, event: Event) -> None:
        """Do what the protocol wants done; a peer that takes nothing for too long is cut off."""
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        with anyio.move_on_after(WRITE_SECONDS, shield=True) as patience:
            await super().protocol_send(event)
        if patience.cancel_called:
            _forget(self.writer.get_extra_info("socket"))
            self.hang_up()
            await self.protocol.handle(Closed())

    async def _close(self) -> None:
        with anyio.move_on_after(WRITE_SECONDS, shield=True):  # what was written may wait for a peer that never reads
            await super()._close()
        self.hang_up()

    async def _initiate_server_close(self) -> None:
        await super()._initiate_server_close()
        self.hang_up()  # it was idle for long enough to take its last answer

    def hang_up(self) -> None:
        """End the connection, and forget what was written and not taken."""
        self.writer.transport.abort()


class GuardedTrio(Guard, TrioConnection):
    """A connection under trio; unguarded its failure would end the nursery, and the process with it."""

    if TYPE_CHECKING:
        state: ConnectionState

    async def protocol_send(self, event: Event) -> None:
        """Do what the protocol wants done; a peer that takes nothing for too long is cut off."""
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            with anyio.move_on_after(WRITE_SECONDS, shield=True) as patience:
                try:
                    await self.stream.send_all(event.data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    patience.cancel()
        if patience.cancel_called:
            _forget(self.stream.socket)
            self.hang_up()
            await self.protocol.handle(Closed())

    def hang_up(self) -> None:
        """End the connection."""
        self.stream.socket.close()


def _forget(connection: Any) -> None:  # noqa: ANN401 - a socket, of one of two loops
    """Let the kernel forget what it could not deliver once the connection is closed, not try for minutes."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def most_connections() -> int:
    """Return how many connections a worker may hold with the files that it may open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if files < 0 else max(1, min(MOST_CONNECTIONS, files - SPARE_FILES))


def harden() -> None:
    """Bind our classes in Hypercorn; repeating it changes nothing."""
    vars(hypercorn.protocol)["H11Protocol"] = OneProtocol
    vars(hypercorn.asyncio.run)["TCPServer"] = GuardedAsyncio
    vars(hypercorn.trio.run)["TCPServer"] = GuardedTrio


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return type(error).__name__
