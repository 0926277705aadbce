"""Hypercorn as it is needed inside one worker: HTTP/1.1 only, and no connection can harm another.

Hypercorn 0.18 (pinned) has no setting for either, so three of its names are bound to classes of ours, once, in
`harden`.
"""

from __future__ import annotations

import math
import re
import resource
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import uuid4

import anyio
import h11
import hypercorn.asyncio.run
import hypercorn.protocol
import hypercorn.trio.run
from hypercorn.asyncio.tcp_server import TCPServer as AsyncioConnection
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer as TrioConnection
from loguru import logger

from service.http.json_body import MOST_BYTES
from service.http.middleware import MOST_HEADER_BYTES, SECURITY, UNKNOWN
from service.http.problems import MEDIA, HeadersTooLarge, MalformedRequest, answer_to
from service.processes.listener import BACKLOG

if TYPE_CHECKING:
    from hypercorn.events import Event
    from hypercorn.typing import H11SendableEvent

HEAD_END = re.compile(rb"\n\r?\n")
BARE_LF = re.compile(rb"(?<!\r)\n")
MOST_HEAD_BYTES = MOST_HEADER_BYTES + 4096  # with the separators, which the edge does not count
TOO_LARGE = 431
HEAD_SECONDS = 5.0  # for a request's head, from the first byte to the last
MOST_CONNECTIONS = 2000  # of one worker, at about 20 KB each
SPARE_FILES = 200  # of those that a process may open, for all that is no connection


class StrictConnection(h11.Connection):
    """h11's server side, without the heads that it lets through.

    What comes after a connection's last request is dropped (RFC 9112, 9.6). h11 calls it an error, and Hypercorn would
    cut off the last answer for it.
    """

    over = False  # the peer is gone

    def wants_more(self) -> bool:
        """Return whether what comes can still be a request."""
        return not self.over and self.their_state is not h11.MUST_CLOSE

    def in_a_head(self) -> bool:
        """Return whether a part of a request's head has come."""
        return self.wants_more() and self.their_state is h11.IDLE and bool(self.trailing_data[0])

    def receive_data(self, data: bytes) -> None:
        """Take what came, unless nothing more is wanted."""
        if self.wants_more():
            super().receive_data(data)

    def next_event(self) -> Any:  # noqa: ANN401 - as h11 has it
        """Return the next event; raises RemoteProtocolError for a head with a bare LF, or too large a one."""
        if not self.wants_more():
            return h11.NEED_DATA
        if self.in_a_head():
            waiting = self.trailing_data[0][: MOST_HEAD_BYTES + 4]
            end = HEAD_END.search(waiting)
            head = waiting if end is None else waiting[: end.end()]
            if len(head) > MOST_HEAD_BYTES:
                raise h11.RemoteProtocolError("the head is too large", error_status_hint=TOO_LARGE)
            if BARE_LF.search(head):
                raise h11.RemoteProtocolError("a line ends without CR")
        return super().next_event()


class OneProtocol(H11Protocol):
    """HTTP/1.1 that never becomes anything else: no offer to upgrade is taken (RFC 9110, 7.8), not WebSocket either."""

    config: WorkerConfig

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - Hypercorn's own
        super().__init__(*arguments, **named)
        self.connection: StrictConnection = StrictConnection(h11.SERVER, self.config.h11_max_incomplete_size)
        self._head = b""  # of an answer, until its content comes

    async def handle(self, event: Event) -> None:
        """Take what came; with the peer's end nothing waits any longer for its next request's turn."""
        if isinstance(event, Closed):
            self.connection.over = True
        await super().handle(event)
        if self.connection.over:
            await self.can_read.set()
        if self.connection.in_a_head():
            self.config.heads.setdefault(self, anyio.current_time() + HEAD_SECONDS)
        else:
            self.config.heads.pop(self, None)

    async def _check_protocol(self, event: h11.Request) -> None:
        pass

    async def _create_stream(self, request: h11.Request) -> None:
        """Begin a request; a body that will be refused unread is not asked for either (RFC 9110, 10.1.1)."""
        plain = [(name, value) for name, value in request.headers.raw_items() if name.lower() != b"upgrade"]
        if len(plain) < len(request.headers):
            request = h11.Request(
                method=request.method, target=request.target, headers=plain, http_version=request.http_version
            )
        lengths = [value for name, value in request.headers if name == b"content-length"]
        if any(int(value) > MOST_BYTES for value in lengths):
            self.connection.client_is_waiting_for_100_continue = False
        await super()._create_stream(request)

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """Send what the event makes; a head of a known length leaves with its content: one write costs what two do."""
        try:
            data = self.connection.send(event) or b""
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        data, self._head = self._head + data, b""
        if isinstance(event, h11.Response) and any(name == b"content-length" for name, _ in event.headers):
            self._head = data
        elif data:
            await self.send(RawData(data=data))

    async def _send_error_response(self, status_code: int) -> None:
        """Answer what is no request, as the edge answers what is none of ours; the connection ends with it."""
        error = HeadersTooLarge() if status_code == TOO_LARGE else MalformedRequest("The request is not HTTP/1.1.")
        answer, request_id = answer_to(error), uuid4().hex
        body = answer.body.encode()
        own = {b"content-type": MEDIA.encode(), b"content-length": str(len(body)).encode(), b"connection": b"close"}
        headers = {**SECURITY, **own, b"x-request-id": request_id.encode()}
        added = [pair for pair in self.config.response_headers("h11") if pair[0] != b"connection"]
        await self._send_h11_event(h11.Response(status_code=answer.status, headers=[*headers.items(), *added]))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())
        logger.info("request", request_id=request_id, route=UNKNOWN, status=answer.status, ms=0.0)


class Log:
    """Takes what Hypercorn says; only faults are worth a line: its own could be forged, and the app logs requests."""

    def __init__(self, config: Config) -> None:
        self.config = config

    async def fault(self, message: str, *_: object, **__: object) -> None:
        """Log a fault and the exception that is being handled."""
        logger.opt(exception=True).error("hypercorn", text=message)

    async def quiet(self, *_: object, **__: object) -> None:
        """Say nothing."""

    critical = error = exception = fault
    warning = info = debug = log = access = quiet


class WorkerConfig(Config):
    """The settings of one worker on an inherited socket, and the number of connections that it holds.

    While `closing` is set every answer says `Connection: close`, so that clients move to another worker without
    ever sending a request into a connection that is being closed.
    """

    include_server_header = False
    logger_class = Log  # type: ignore[assignment]  # it is called for these methods only
    backlog = BACKLOG  # Hypercorn calls listen() once more on the shared socket

    def __init__(self, listener: int, *, grace: float, keep_alive: float) -> None:
        super().__init__()
        self.keep_alive_timeout = keep_alive
        self.bind = [f"fd://{listener}"]
        self.graceful_timeout = grace
        self.closing = False
        self.heads: dict[OneProtocol, float] = {}  # when each head that has begun must be complete
        self._most = most_connections()
        self._connections = 0
        self._idle: dict[Guard, float] = {}  # since when; the longest idle first
        self._empty = anyio.Event()

    async def opened(self, connection: Guard) -> bool:
        """Count a connection in; where there are too many, the one that has been idle for the longest makes room.

        Where all of them are being served that is the new one: returns False for it.
        """
        self._connections += 1
        self._idle[connection] = anyio.current_time()
        if self._connections > self._most:
            oldest = next(iter(self._idle))
            if oldest is connection:
                return False
            del self._idle[oldest]
            await oldest.protocol_send(Closed())
        return True

    def used(self, connection: Guard, *, idle: bool) -> None:
        """Note that a connection has begun to serve a request, or waits for the next one."""
        self._idle.pop(connection, None)
        if idle:
            self._idle[connection] = anyio.current_time()

    def closed(self, connection: Guard) -> None:
        """Count a connection out."""
        self._idle.pop(connection, None)
        self._connections -= 1
        if not self._connections:
            self._empty.set()
            self._empty = anyio.Event()

    async def cut_slow_connections(self) -> NoReturn:
        """End connections whose head takes too long, or that have been idle for too long, until cancelled."""
        while True:
            await anyio.sleep(1)  # each may take that much longer
            now = anyio.current_time()
            for slow in [one for one, until in self.heads.items() if until <= now]:
                await slow.send(Closed())
            await self.close_idle(now - self.keep_alive_timeout)

    async def close_idle(self, since: float = math.inf) -> None:
        """Close the connections that have been idle since then, by the loop's clock."""
        while self._idle:
            oldest, begun = next(iter(self._idle.items()))
            if begun > since:
                return
            del self._idle[oldest]
            await oldest.protocol_send(Closed())

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


class NoIdleTask:
    """In the place of a task for each time that a connection is idle: WorkerConfig sees to that once a second."""

    async def restart(self, *_: object) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do nothing."""


class Guard:
    """A connection of either loop whose failure is its own: under trio it would end the process."""

    config: Any
    protocol: Any
    idle_task: Any

    async def run(self) -> None:
        """Serve the connection to its end, which is never an exception but for a cancellation."""
        self.idle_task = NoIdleTask()
        try:
            if await self.config.opened(self):
                await super().run()  # type: ignore[misc]  # mixed into Hypercorn's connection classes
            else:
                await self._close()
        except Exception as error:  # noqa: BLE001 - whatever one peer provokes must not reach the others
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            logger.warning("connection failed", error=type(error).__name__)
        finally:
            self.config.closed(self)

    async def protocol_send(self, event: Event) -> None:
        """Do what the protocol wants done, and note whether a request is being served."""
        if isinstance(event, Updated):
            self.config.used(self, idle=event.idle)
        try:
            await super().protocol_send(event)  # type: ignore[misc]  # as above
        except TimeoutError:  # of the kernel: the peer takes nothing of its answer
            await self.protocol.handle(Closed())

    async def _close(self) -> None:
        with suppress(TimeoutError):  # as above
            await super()._close()  # type: ignore[misc]  # as above


class GuardedAsyncio(Guard, AsyncioConnection):
    """A connection under asyncio or uvloop."""


class GuardedTrio(Guard, TrioConnection):
    """A connection under trio."""


def most_connections() -> int:
    """Return how many connections a worker may hold with the files that it may open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if files < 0 else max(1, min(MOST_CONNECTIONS, files - SPARE_FILES))


def harden() -> None:
    """Bind our classes in Hypercorn; repeating it changes nothing."""
    vars(hypercorn.protocol)["H11Protocol"] = OneProtocol
    vars(hypercorn.asyncio.run)["TCPServer"] = GuardedAsyncio
    vars(hypercorn.trio.run)["TCPServer"] = GuardedTrio
