"""Traces of requests: a server span each, by the semantic conventions for HTTP, without anything a client typed.

Neither path nor query, host, client address or user agent become attributes: a path may be a status address, and
traces go to people who need not know who signs up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.trace import SpanKind

from service.http.edge import UNKNOWN, exchange_of
from service.traceparent import HEADER, of_headers
from service.tracing.spans import failed, parent_of, span, traceparent_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
STATE = b"tracestate"
SERVER_ERROR = 500


class TracedApplication:
    """Wraps an ASGI application; inside, the request's own trace context stands where the caller's stood."""

    def __init__(self, application: Any, tracer: Tracer) -> None:  # noqa: ANN401 - any ASGI framework
        self._application = application
        self._tracer = tracer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - as above
        """Serve one scope; only HTTP requests are traced."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        attributes = {
            "http.request.method": method,
            "url.scheme": scope.get("scheme", "http"),
            "network.protocol.version": scope.get("http_version", "1.1"),
        }
        state = b",".join(value for name, value in scope["headers"] if name.lower() == STATE).decode("latin-1")
        context = parent_of(of_headers(scope["headers"]), state)
        with span(self._tracer, method, kind=SpanKind.SERVER, context=context, attributes=attributes) as one:
            kept = [(name, value) for name, value in scope["headers"] if name.lower() not in {HEADER, STATE}]
            own = traceparent_of(one.get_span_context()).encode()
            scope = {**scope, "headers": [*kept, (HEADER, own)]}
            try:
                await self._application(scope, receive, send)
            finally:
                _name(one, scope, method)


def _name(one: Span, scope: Any, method: str) -> None:  # noqa: ANN401 - as above
    """Name the span by its route; a client that left before its answer has no status."""
    exchange = exchange_of(scope)
    one.update_name("HTTP" if method == "_OTHER" else method)
    if exchange.route != UNKNOWN:
        route = exchange.route.partition(" ")[2]
        one.set_attribute("http.route", route)
        one.update_name(f"{method} {route}")
    if exchange.status is not None:
        one.set_attribute("http.response.status_code", exchange.status)
        if exchange.status >= SERVER_ERROR:
            failed(one, str(exchange.status))
