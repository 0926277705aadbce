"""Spans of OpenTelemetry: requests, what actors are asked, and mails; one trace from the request to the mail's 250.

Made here and not by OpenTelemetry's instrumentations: that of ASGI shows whole paths, and so status addresses; that of
psycopg measures nothing in pipelines; none follows a message into its batch (docs/adr/0010-libraries.md). No attribute
holds a path, a query, an address or the text of an error: people who read traces need not know who signs up.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import uuid4

import anyio
import anyio.to_thread
from loguru import logger
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanKind, StatusCode, set_span_in_context, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from actors.domain.mail import Deferred, Rejected
from actors.kit.mailbox import Address, MachineError
from service.telemetry.trace_context import HEADER, of_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Span, Tracer

    from actors.domain.mail import ClaimedMail
    from actors.kit.actor import Actor
    from actors.kit.mailbox import Ask, Envelope
    from actors.kit.supervisor import Supervisor

AnswerT = TypeVar("AnswerT")

NAME = "vestibule"
FLUSH_SECONDS = 2.0  # for the last spans of a process that ends; a collector that is away delays no stop
OUTCOME, REASON = "vestibule.outcome", "vestibule.mail.reason"
SERVER_ERROR = 500


class Exchange(Protocol):
    """What became of a request."""

    @property
    def route(self) -> str:
        """Its method and its route's template."""
        ...

    @property
    def status(self) -> int | None:
        """The status of its answer."""
        ...


class Spans:
    """The traces of a process that has a collector: what wiring puts around the parts worth seeing."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def span(
        self,
        name: str,
        kind: SpanKind = SpanKind.INTERNAL,
        *,
        context: Context | None = None,
        attributes: Mapping[str, str | int] | None = None,
        links: Sequence[Link] = (),
    ) -> Iterator[Span]:
        """Make a span current around the body; an error shows as its type. A refusal is an answer, no failure."""
        span = self._tracer.start_span(name, context, kind, attributes, links)
        with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield span
            except Exception as error:
                span.set_attribute(OUTCOME, type(error).__name__)
                if isinstance(error, MachineError | Deferred | Rejected):
                    span.set_status(StatusCode.ERROR)
                raise

    def application(self, application: Any, exchange: str) -> Any:  # noqa: ANN401 - any ASGI framework
        """Trace requests; inside, the request's own trace context stands where its caller's stood.

        The application leaves in its scope, under the name `exchange`, what became of a request.
        """

        async def traced(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - as servers pass them
            if scope["type"] != "http":
                await application(scope, receive, send)
                return
            with self.span("HTTP", SpanKind.SERVER, context=_parent(of_headers(scope["headers"]))) as span:
                others = [(name, value) for name, value in scope["headers"] if name.lower() != HEADER]
                own = {**scope, "headers": [*others, (HEADER, traceparent_of(span).encode())]}
                try:
                    await application(own, receive, send)
                finally:
                    _describe(span, own[exchange])

        return traced

    def start(self, supervisor: Supervisor, build: Callable[[], Actor[Any]], *, copies: int = 1) -> Address:
        """Trace asks, until their answers, and batches.

        A batch is a child of its first asker and linked to the others: one statement answers them together.
        """
        asking: dict[int, Span] = {}

        def traced() -> Actor[Any]:
            actor = build()
            handle = actor.handle

            async def batch(envelopes: Sequence[Envelope[Any]]) -> None:
                askers = [asking[key] for key in map(_key_of, envelopes) if key in asking]
                if not askers:
                    await handle(envelopes)
                    return
                first, *others = askers
                with self.span(
                    f"{actor.name} batch",
                    context=set_span_in_context(first),
                    attributes={"vestibule.batch.size": len(envelopes)},
                    links=[Link(other.get_span_context()) for other in others],
                ):
                    await handle(envelopes)

            actor.handle = batch  # type: ignore[method-assign]  # of this one actor
            return actor

        address = supervisor.start(traced, copies=copies)
        return TracedAddress(address, self, supervisor.services()[-1].name, asking)

    @contextmanager
    def mail(self, mail: ClaimedMail) -> Iterator[None]:
        """Trace one send as a part of the request that owed the mail; a retry is one more."""
        attributes: dict[str, str | int] = {
            "messaging.message.id": str(mail.id),
            "vestibule.mail.kind": mail.kind.value,
            "vestibule.mail.attempt": mail.tries,
        }
        context = _parent(mail.traceparent)
        with self.span("send mail", SpanKind.CONSUMER, context=context, attributes=attributes) as span:
            try:
                yield
            except (Deferred, Rejected) as error:
                span.set_attribute(REASON, error.reason)  # written without addresses
                raise
            span.set_attribute(OUTCOME, "accepted")


class TracedAddress(Address):
    """The same mailbox; asking it is a span of the asker's trace."""

    def __init__(self, inner: Address, spans: Spans, actor: str, asking: dict[int, Span]) -> None:
        super().__init__(inner.mailbox, inner.admit)
        self._spans = spans
        self._actor = actor
        self._asking = asking

    async def ask(self, message: Ask[AnswerT]) -> AnswerT:
        """Return the actor's answer, as Address does."""
        with self._spans.span(f"{self._actor} {type(message).__name__}") as span:
            self._asking[id(message)] = span  # the caller keeps the message until its answer
            try:
                return await super().ask(message)
            finally:
                del self._asking[id(message)]


def _key_of(envelope: Envelope[Any]) -> int:
    return id(envelope.message)


def _parent(traceparent: str | None) -> Context:
    """Return the context that continues this trace, an empty one without it."""
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent or ""}, Context())


def traceparent_of(span: Span) -> str:
    """Return the W3C form of a span's place in its trace, sampled or not."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _describe(span: Span, exchange: Exchange) -> None:
    """Name the span by its route's template; a client that left before its answer has no status."""
    span.update_name(exchange.route)
    span.set_attribute("http.route", exchange.route.partition(" ")[2])
    if exchange.status is not None:
        span.set_attribute("http.response.status_code", exchange.status)
        if exchange.status >= SERVER_ERROR:
            span.set_status(StatusCode.ERROR)


class LoggedExporter(SpanExporter):
    """Exports in the processor's thread; an outage of the collector is two log lines and costs its spans alone."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch, or lose it."""
        result = self._exporter.export(spans)
        away = result is not SpanExportResult.SUCCESS
        if away and not self._away:
            logger.warning("the collector does not take the traces; spans are lost until it does")
        elif self._away and not away:
            logger.info("the collector takes the traces again")
        self._away = away
        return result

    def shutdown(self) -> None:
        """Give up what is being sent."""
        self._exporter.shutdown()


@asynccontextmanager
async def opened(process: str, exporter: SpanExporter | None = None) -> AsyncIterator[Spans]:
    """Open the traces of a process by OpenTelemetry's variables, after the fork; their end is bounded in time."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # outages are logged above, not each second
    named = Resource.create({"service.version": version(NAME), "service.instance.id": f"{process}.{uuid4().hex[:8]}"})
    default = Resource({"service.name": NAME})
    unnamed = str(named.attributes["service.name"]).startswith("unknown_service")
    provider = TracerProvider(resource=named.merge(default) if unnamed else named, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(LoggedExporter(exporter or OTLPSpanExporter())))
    try:
        yield Spans(provider.get_tracer(NAME, version(NAME)))
    finally:
        with anyio.move_on_after(FLUSH_SECONDS, shield=True):
            await anyio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)
