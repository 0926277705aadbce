"""Spans of OpenTelemetry: a request, what actors are asked for it, its mails; one trace until the mail server's 250.

Made here and not by OpenTelemetry's instrumentations: that of ASGI shows whole paths, and so status addresses; that of
psycopg measures nothing in pipelines (docs/adr/0010-libraries.md). No attribute holds a path, a query, an address or
the text of an error: people who read traces need not know who signs up.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import anyio
import anyio.to_thread
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from actors.domain.mail import Deferred, Rejected
from actors.kit.mailbox import Address, MachineError
from service.telemetry.trace_context import HEADER, Traces, of_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

    from actors.domain.mail import ClaimedMail
    from actors.kit.actor import Actor
    from actors.kit.mailbox import Ask
    from actors.kit.supervisor import Supervisor

AnswerT = TypeVar("AnswerT")

NAME = "vestibule"
FLUSH_SECONDS = 2.0  # for the last spans of a process that ends; a collector that is away delays no stop
SERVER_ERROR = 500
PROPAGATOR = TraceContextTextMapPropagator()


class Spans(Traces):
    """The traces of a process that has a collector."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def span(
        self,
        name: str,
        kind: SpanKind = SpanKind.INTERNAL,
        traceparent: str | None = None,
        attributes: Mapping[str, str | int] | None = None,
    ) -> Iterator[Span]:
        """Make a span current around the body; an error shows as its type. A refusal is an answer, no failure."""
        parent = PROPAGATOR.extract({"traceparent": traceparent}) if traceparent else None
        with self._tracer.start_as_current_span(
            name, parent, kind, attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                if isinstance(error, MachineError | Deferred | Rejected):
                    span.set_status(StatusCode.ERROR)
                raise

    def application(self, application: Any, exchange: str) -> Any:  # noqa: ANN401 - any ASGI framework
        """Trace requests; inside, the request's own trace context stands where its caller's stood."""

        async def traced(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - as servers pass them
            if scope["type"] != "http":
                await application(scope, receive, send)
                return
            with self.span("HTTP", SpanKind.SERVER, of_headers(scope["headers"])) as span:
                inside: dict[str, str] = {}
                PROPAGATOR.inject(inside)
                others = [pair for pair in scope["headers"] if pair[0].lower() != HEADER]
                own = {**scope, "headers": [*others, (HEADER, inside["traceparent"].encode())]}
                try:
                    await application(own, receive, send)
                finally:
                    span.update_name(own[exchange].route)
                    if status := own[exchange].status:  # a client that left before its answer has none
                        span.set_attribute("http.response.status_code", status)
                        if status >= SERVER_ERROR:
                            span.set_status(StatusCode.ERROR)

        return traced

    def start(self, supervisor: Supervisor, build: Callable[[], Actor[Any]], *, copies: int = 1) -> Address:
        """Start the actor and trace what it is asked, from the wait for room to the answer of the batch."""
        address = supervisor.start(build, copies=copies)
        return TracedAddress(address, self, supervisor.services()[-1].name)

    def mail(self, mail: ClaimedMail) -> AbstractContextManager[object]:
        """Trace one send as a part of the request that owed the mail; a retry is one more."""
        attributes: dict[str, str | int] = {"messaging.message.id": str(mail.id), "vestibule.mail.attempt": mail.tries}
        return self.span("send mail", SpanKind.CONSUMER, mail.traceparent, attributes)


class TracedAddress(Address):
    """The same mailbox; asking it is a span of the asker's trace."""

    def __init__(self, inner: Address, spans: Spans, actor: str) -> None:
        super().__init__(inner.mailbox, inner.admit)
        self._spans = spans
        self._actor = actor

    async def ask(self, message: Ask[AnswerT]) -> AnswerT:
        """Return the actor's answer, as Address does."""
        with self._spans.span(f"{self._actor} {type(message).__name__}"):
            return await super().ask(message)


@asynccontextmanager
async def opened(process: str, exporter: SpanExporter | None = None) -> AsyncIterator[Spans]:
    """Open the traces of a process by OpenTelemetry's variables, after the fork; their end is bounded in time."""
    resource = Resource.create(
        {
            "service.name": os.environ.get("OTEL_SERVICE_NAME", NAME),
            "service.version": version(NAME),
            "service.instance.id": f"{process}.{uuid4().hex[:8]}",
        }
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    try:
        yield Spans(provider.get_tracer(NAME, version(NAME)))
    finally:
        with anyio.move_on_after(FLUSH_SECONDS, shield=True):
            await anyio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)
