"""Hypercorn as we want it inside one worker: HTTP/1.1 only, and no connection can harm another.

Hypercorn 0.18 (pinned) offers no setting for either, so three of its names are bound to the classes below, once, in
`harden`; tests/faults/test_hypercorn_worker.py holds the behaviour at the socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import h11
import hypercorn.asyncio.run
import hypercorn.protocol
import hypercorn.trio.run
from hypercorn.asyncio.tcp_server import TCPServer as AsyncioConnection
from hypercorn.config import Config
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer as TrioConnection
from loguru import logger

from service.listener import BACKLOG

if TYPE_CHECKING:
    from hypercorn.typing import ConnectionState

KEEP_ALIVE_SECONDS = 5.0  # of silence, between requests and inside a request's head


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

    def __init__(self, listener: int, grace: float) -> None:
        super().__init__()
        self.bind = [f"fd://{listener}"]
        self.graceful_timeout = grace
        self.closing = False
        self._connections = 0
        self._empty = anyio.Event()

    def opened(self) -> None:
        """Count a connection in."""
        self._connections += 1

    def closed(self) -> None:
        """Count a connection out."""
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


class OneProtocol(H11Protocol):
    """HTTP/1.1 that never becomes anything else: no offer to upgrade is taken (RFC 9110, 7.8), not WebSocket either."""

    async def _check_protocol(self, event: h11.Request) -> None:
        pass

    async def _create_stream(self, request: h11.Request) -> None:
        plain = [(name, value) for name, value in request.headers.raw_items() if name.lower() != b"upgrade"]
        if len(plain) < len(request.headers):
            request = h11.Request(
                method=request.method, target=request.target, headers=plain, http_version=request.http_version
            )
        await super()._create_stream(request)


class Guard:
    """Ends a connection that failed, and nothing else; counts those that are open."""

    config: Any

    async def run(self) -> None:
        """Serve the connection to its end, which is never an exception but for a cancellation."""
        self.config.opened()
        try:
            await super().run()  # type: ignore[misc]  # mixed into Hypercorn's connection classes
        except Exception as error:  # noqa: BLE001 - whatever one peer provokes must not reach the others
            logger.warning("connection failed", error=_innermost(error))
        finally:
            self.config.closed()


class GuardedAsyncio(Guard, AsyncioConnection):
    """A connection under asyncio or uvloop."""


class GuardedTrio(Guard, TrioConnection):
    """A connection under trio; unguarded its failure would end the nursery, and the process with it."""

    if TYPE_CHECKING:
        state: ConnectionState


def harden() -> None:
    """Bind our classes in Hypercorn; repeating it changes nothing."""
    vars(hypercorn.protocol)["H11Protocol"] = OneProtocol
    vars(hypercorn.asyncio.run)["TCPServer"] = GuardedAsyncio
    vars(hypercorn.trio.run)["TCPServer"] = GuardedTrio


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return type(error).__name__
