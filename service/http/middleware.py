"""The ASGI middleware around the application: request ids, headers, one log line and one observation per answer.

It refuses requests that no handler should see, and answers when something breaks inside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import anyio
from loguru import logger

from actors.metrics_aggregator import Observation
from service.http.problems import (
    MEDIA,
    AmbiguousLength,
    HeadersTooLarge,
    MalformedRequest,
    MethodRefused,
    RequestRefused,
    UnknownPath,
    answer_to,
)
from service.telemetry.trace_context import of_headers, trace_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from actors.kit.mailbox import Address
    from actors.limits import Client
    from service.http.problems import ProblemAnswer
    from service.settings import Settings

    Scope = MutableMapping[str, Any]
    Event = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Event]]
    Send = Callable[[Event], Awaitable[None]]
    Application = Callable[[Scope, Receive, Send], Awaitable[None]]
    Headers = Iterable[tuple[bytes, bytes]]

EXCHANGE = "vestibule.exchange"  # where the scope carries what becomes of the request
UNKNOWN = "unknown"  # one label for whatever matched no route: clients must not be able to make labels
LAST_SECONDS = 10.0  # for the last event of an answer: a client that does not read until then is not served to the end
BODY_SECONDS = 5.0  # for the whole body: a slow sender holds a connection, not a place
MOST_HEADER_BYTES = 16 * 1024  # of the request target and all headers: Basic auth and a token need one
MOST_HEADERS = 100
METHODS = ("GET", "HEAD", "OPTIONS", "POST")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
HOST = re.compile(  # what a host cannot be called (RFC 1123, 2.1) is no request's Host (RFC 9112, 3.2)
    rb"(?:(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?|\[[0-9A-Fa-f:.]+\])?(?::[0-9]{0,5})?"
)
SECURITY = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",  # what may be kept says so itself
}
A_YEAR = b"max-age=31536000"
EXPOSED = (
    b"Location, Retry-After, RateLimit, RateLimit-Policy, WWW-Authenticate, X-RateLimit-Limit, X-RateLimit-Remaining, "
    b"X-RateLimit-Reset, X-Request-ID"
)
PREFLIGHT = {
    b"access-control-allow-methods": b"GET, HEAD, POST",
    b"access-control-allow-headers": b"Authorization, Content-Type, Idempotency-Key, Traceparent, X-Request-ID",
    b"access-control-max-age": b"600",
}


@dataclass(slots=True)
class Exchange:
    """One request and what becomes of it; the application names the `route` once it knows it."""

    request_id: str
    route: str = UNKNOWN
    status: int | None = None
    traceparent: str | None = None
    client: Client | None = None
    begun: float = field(default_factory=perf_counter)


def exchange_of(scope: Any) -> Exchange:  # noqa: ANN401 - a scope is a mapping with a type of its server's
    """Return the exchange that the middleware put into the scope."""
    exchange: Exchange = scope[EXCHANGE]
    return exchange


def log_crash(error: Exception, request_id: str) -> None:
    """Log an error that no table knows, as its type and its stack; its text may hold what a user typed."""
    logger.opt(exception=error).error("unhandled error", request_id=request_id, error=type(error).__qualname__)


class Middleware:
    """Wraps an ASGI application; holds nothing about any request. What has an `early` answer never reaches it."""

    def __init__(
        self,
        application: Application,
        settings: Settings,
        metrics: Address,
        early: Callable[[Scope], ProblemAnswer | None],
    ) -> None:
        self._application = application
        self._early = early
        self._metrics = metrics
        self._headers = AnswerHeaders(settings)
        self._root = settings.root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope: an HTTP request as described above, anything else as it is.

        A path under PUBLIC_URL's own path is served as if a proxy had taken that off.
        """
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        if self._root and f"{scope['path']}/".startswith(f"{self._root}/"):
            scope["path"] = scope["path"].removeprefix(self._root) or "/"
        exchange = scope[EXCHANGE] = Exchange(_request_id(scope), traceparent=of_headers(scope["headers"]))

        async def send_complete(event: Event) -> None:
            if event["type"] == "http.response.start":
                exchange.status = event["status"]
                event = {**event, "headers": self._headers.complete(scope, exchange.request_id, event["headers"])}
            elif scope["method"] == "HEAD":
                event = {**event, "body": b""}
            await _through(send, event)

        try:
            await self._serve(scope, receive, send_complete, exchange)
        finally:
            self._record(exchange)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        try:
            check(scope)
            if refusal := self._early(scope):
                await _read_through(receive)
                await _send_problem(send, refusal)
            else:
                await self._application(scope, receive, send)
        except RequestRefused as refused:
            await _send_problem(send, answer_to(refused))
        except Exception as error:
            log_crash(error, exchange.request_id)
            if exchange.status is not None:
                raise  # half an answer is out: only closing the connection shows that
            await _send_problem(send, answer_to(error))

    def _record(self, exchange: Exchange) -> None:
        """Offer one observation and write one line; a client that left before its answer was not answered."""
        took = (perf_counter() - exchange.begun) * 1000
        if exchange.status is not None:
            self._metrics.offer(Observation(exchange.route, exchange.status, took))
        trace = {} if exchange.traceparent is None else {"trace_id": trace_id(exchange.traceparent)}
        logger.info(
            "request", request_id=exchange.request_id, route=exchange.route, status=exchange.status, ms=took, **trace
        )


class AnswerHeaders:
    """The headers that every answer gets, by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._origins = frozenset(origin.encode() for origin in settings.cors_origins)
        self._defaults = dict(SECURITY)
        if settings.public_url is not None and settings.public_url.startswith("https://"):
            self._defaults[b"strict-transport-security"] = A_YEAR

    def complete(self, scope: Scope, request_id: str, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Return the answer's headers with ours; a security header that the answer has already stays as it is."""
        own = [(name.lower(), value) for name, value in headers if name.lower() != b"server"]
        present = {name for name, _ in own}
        added = [(name, value) for name, value in self._defaults.items() if name not in present]
        return [*own, *added, (b"x-request-id", request_id.encode()), *self._cors(scope)]

    def _cors(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """Allow exactly the listed origins; no credentials mode: Basic auth is a header that the page sets itself."""
        if not self._origins:
            return []
        asked = values_of(scope, b"origin")
        if len(asked) != 1 or asked[0] not in self._origins:
            return [(b"vary", b"Origin")]
        allowed = {b"access-control-allow-origin": asked[0], b"access-control-expose-headers": EXPOSED}
        if scope["method"] == "OPTIONS":
            allowed |= PREFLIGHT
        return [(b"vary", b"Origin"), *allowed.items()]


def check(scope: Scope) -> None:
    """Raise RequestRefused for a hostile request; bring an absolute target (RFC 9112, 3.2.2) down to its path."""
    headers = scope["headers"]
    target = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    if len(headers) > MOST_HEADERS or target + sum(len(n) + len(v) for n, v in headers) > MOST_HEADER_BYTES:
        raise HeadersTooLarge
    if not scope["http_version"].startswith("1."):
        raise MalformedRequest("The request is not HTTP/1.1.")
    if scope["method"] == "CONNECT":
        raise MethodRefused(METHODS)
    names = {name.lower() for name, _ in headers}
    if b"transfer-encoding" in names and b"content-length" in names:  # RFC 9112, 6.3: request smuggling
        raise AmbiguousLength("The request announces its length twice.")
    if not all(map(HOST.fullmatch, values_of(scope, b"host"))):
        raise MalformedRequest("The Host is none.")
    if not scope["path"].startswith("/"):
        scope["path"] = _path_of(scope["path"])
    if scope["path"].startswith("//"):  # the router would read it as a path with one slash, a proxy in front would not
        raise UnknownPath


def _path_of(target: str) -> str:
    try:
        parts = urlsplit(target)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in {"http", "https"}:
        raise MalformedRequest("The request's target is not a path.")
    return parts.path or "/"


def values_of(scope: Scope, header: bytes) -> list[bytes]:
    """Return a request's values of a header, which is named in lower case."""
    return [value for name, value in scope["headers"] if name.lower() == header]


def _request_id(scope: Scope) -> str:
    """Return the caller's id if it is a plain one and the only one, else one of ours."""
    given = values_of(scope, b"x-request-id")
    if len(given) == 1 and REQUEST_ID.fullmatch(given[0]):
        return str(given[0].decode())
    return uuid4().hex


async def _through(send: Send, event: Event) -> None:
    """Send an event; the last one of an answer to its end.

    With it the server ends the connection, and signals that to the application before it has done so: the application
    would cancel the call that was to close it, and under Trio an unread body then kept it open for ever.
    """
    if event.get("more_body", True):
        await send(event)
        return
    with anyio.move_on_after(LAST_SECONDS, shield=True):
        await send(event)


async def _read_through(receive: Receive) -> None:
    """Read the body to its end: nginx ends the connection of a client whose body it is still passing on."""
    with anyio.move_on_after(BODY_SECONDS):
        while (await receive()).get("more_body"):
            pass


async def _send_problem(send: Send, answer: ProblemAnswer) -> None:
    body = answer.body.encode()
    headers = {"Content-Type": MEDIA, "Content-Length": str(len(body)), **answer.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": False})
