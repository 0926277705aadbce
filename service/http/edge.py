"""The edge: plain ASGI around the application, so that every answer has what every answer has.

Request ids, security and CORS headers, refusals of requests that no handler should see, one observation and one line of
log per answer, and an answer for whatever breaks inside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
from loguru import logger

from actors.kit.mailbox import NotAccepted
from actors.metrics_aggregator import Observation
from service.http.edge_checks import check
from service.http.edge_headers import EdgeHeaders, values_of
from service.http.errors import RequestRefused
from service.http.problem_answers import MEDIA, answer_to
from service.traceparent import of_headers, trace_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from actors.access import Place
    from actors.kit.mailbox import Address
    from service.settings import Settings

    Scope = MutableMapping[str, Any]
    Event = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Event]]
    Send = Callable[[Event], Awaitable[None]]
    Application = Callable[[Scope, Receive, Send], Awaitable[None]]

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
UNKNOWN = "unknown"  # one label for whatever matched no route: clients must not be able to make labels
LAST_SECONDS = 10.0  # for the last event of an answer: whoever does not read until then is not served to the end
EXCHANGE = "vestibule.exchange"  # where the scope carries it


@dataclass(slots=True)
class Exchange:
    """One request and what becomes of it; the application names the `route` once it knows it.

    A registration that has passed the turnstile has its `place`.
    A `streaming` answer is counted when it begins, with the time until then: its length says nothing of the service.
    """

    request_id: str
    route: str = UNKNOWN
    status: int | None = None
    traceparent: str | None = None
    streaming: bool = False
    place: Place | None = None
    begun: float = field(default_factory=perf_counter)

    @property
    def milliseconds(self) -> float:
        """How long it has taken so far."""
        return (perf_counter() - self.begun) * 1000


class Edge:
    """Wraps an ASGI application; holds nothing about any request."""

    def __init__(self, application: Application, settings: Settings, metrics: Address) -> None:
        self._application = application
        self._metrics = metrics
        self._headers = EdgeHeaders(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope: an HTTP request as described above, no WebSocket, and the lifespan as it is."""
        if scope["type"] == "http":
            await self._exchange(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._refuse_websocket(scope, receive, send)
        else:
            await self._application(scope, receive, send)

    async def _refuse_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 404 where the server can, else close before accepting, which is a 403."""
        await receive()
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1000})
            return

        async def as_websocket(event: Event) -> None:
            await send({**event, "type": f"websocket.{event['type']}"})

        await self._exchange({**scope, "method": "GET"}, receive, as_websocket)

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(_request_id(scope), traceparent=of_headers(scope["headers"]))
        scope[EXCHANGE] = exchange
        head = scope["method"] == "HEAD"

        async def dressed(event: Event) -> None:
            if event["type"] == "http.response.start":
                exchange.status = event["status"]
                if exchange.streaming:
                    self._count(exchange)
                event = {**event, "headers": self._headers.dress(scope, exchange.request_id, event["headers"])}
            elif head:
                event = {**event, "body": b""}
            await _through(send, event)

        try:
            await self._serve(scope, receive, dressed, exchange)
        finally:
            self._tell(exchange)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        try:
            check(scope)
            await self._application(scope, receive, send)
        except (RequestRefused, NotAccepted) as refused:
            await _send_problem(send, refused)
        except Exception as error:
            log_crash(error, exchange.request_id)
            if exchange.status is not None:
                raise  # half an answer is out: only closing the connection tells the client so
            await _send_problem(send, error)

    def _tell(self, exchange: Exchange) -> None:
        """Offer one observation and write one line; a client that left before its answer was not answered."""
        took = round(exchange.milliseconds, 2)
        if not exchange.streaming:
            self._count(exchange)
        trace = {} if exchange.traceparent is None else {"trace_id": trace_id(exchange.traceparent)}
        logger.info(
            "request", request_id=exchange.request_id, route=exchange.route, status=exchange.status, ms=took, **trace
        )

    def _count(self, exchange: Exchange) -> None:
        if exchange.status is not None:
            self._metrics.offer(Observation(exchange.route, exchange.status, exchange.milliseconds))


def log_crash(error: Exception, request_id: str) -> None:
    """Log an error that no table knows, as its type and its stack; its text may hold what a user typed."""
    logger.opt(exception=error).error("unhandled error", request_id=request_id, error=type(error).__qualname__)


def exchange_of(scope: Any) -> Exchange:  # noqa: ANN401 - a scope is a mapping with a type of its server's
    """Return the exchange that the edge put into the scope."""
    exchange: Exchange = scope[EXCHANGE]
    return exchange


def _request_id(scope: Scope) -> str:
    """Return the caller's id if it is a plain one and the only one, else one of ours."""
    given = values_of(scope, b"x-request-id")
    if len(given) == 1 and REQUEST_ID.fullmatch(given[0]):
        return str(given[0].decode())
    return uuid4().hex


async def _through(send: Send, event: Event) -> None:
    """Send an event; the last one of an answer to its end.

    With it the server takes leave of the connection, and tells the application so before it has done that: the
    application would cancel the call that was to close it, and under Trio an unread body then kept it open for ever.
    """
    if event.get("more_body", True):
        await send(event)
        return
    with anyio.move_on_after(LAST_SECONDS, shield=True):
        await send(event)


async def _send_problem(send: Send, error: Exception) -> None:
    answer = answer_to(error)
    body = answer.body.encode()
    headers = {"Content-Type": MEDIA, "Content-Length": str(len(body)), **answer.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": False})
