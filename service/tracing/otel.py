"""Opens the traces of one process: a provider made after the fork, an exporter, an end that is bounded in time."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import anyio.to_thread
from loguru import logger
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from service.tracing.asks import employ
from service.tracing.mails import Claims, TracedDelivery, TracedOutbox, TracedPostman
from service.tracing.requests import TracedApplication

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Tracer

    from actors.kit.actor import Actor
    from actors.kit.mailbox import Address
    from actors.kit.supervisor import Supervisor
    from actors.mail_ports import Outbox, Postman
    from actors.mail_room import Deliver
    from service.tracing.tracing import Opening, Tracing

NAME = "vestibule"
FLUSH_SECONDS = 2.0  # for the last spans of a process that ends; a collector that is away keeps nobody


class Traced:
    """The traces of one process, over OpenTelemetry's SDK."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._claims = Claims()

    def application(self, application: Any) -> Any:  # noqa: ANN401 - any ASGI framework
        """Trace its requests."""
        return TracedApplication(application, self._tracer)

    def employ(self, supervisor: Supervisor, build: Callable[[], Actor[Any]], *, copies: int = 1) -> Address:
        """Trace what the actor is asked, and its batches."""
        return employ(self._tracer, supervisor, build, copies)

    def outbox(self, outbox: Outbox) -> Outbox:
        """Trace claims and outcomes."""
        return TracedOutbox(outbox, self._tracer, self._claims)

    def postman(self, postman: Postman, way: str) -> Postman:
        """Trace each send."""
        return TracedPostman(postman, self._tracer, way)

    def delivery(self, deliver: Deliver) -> Deliver:
        """Trace each delivery."""
        return TracedDelivery(deliver, self._tracer, self._claims)


class Told(SpanExporter):
    """Exports in the processor's thread; an outage of the collector is told once and costs its spans alone."""

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

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept here."""
        return self._exporter.force_flush(timeout_millis)


def opening(*, named: bool) -> Opening:
    """Return what opens the traces of a process by OpenTelemetry's variables; `named` if they name the service."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # outages are told above, once instead of each second

    @asynccontextmanager
    async def opened(process: str) -> AsyncIterator[Tracing]:
        provider = TracerProvider(resource=_resource(process, named=named), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(Told(OTLPSpanExporter())))
        try:
            yield Traced(provider.get_tracer(NAME, version(NAME)))
        finally:
            with anyio.move_on_after(FLUSH_SECONDS, shield=True):
                await anyio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)

    return opened


def _resource(process: str, *, named: bool) -> Resource:
    ours = {"service.version": version(NAME), "service.instance.id": f"{process}.{uuid4().hex[:8]}"}
    return Resource.create(ours if named else {"service.name": NAME, **ours})
