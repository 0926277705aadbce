"""Spans as we make them: no exception's text ever becomes an attribute, it may hold what a user typed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from actors.kit.mailbox import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from opentelemetry.trace import Link, Span, SpanContext, Tracer
    from opentelemetry.util.types import AttributeValue

PROPAGATOR = TraceContextTextMapPropagator()
OUTCOME, ERROR_TYPE = "vestibule.outcome", "error.type"


def parent_of(traceparent: str | None, tracestate: str | None = None) -> Context:
    """Return the context that continues this trace, an empty one without it."""
    carrier = {"traceparent": traceparent or "", **({"tracestate": tracestate} if tracestate else {})}
    return PROPAGATOR.extract(carrier, Context())


def traceparent_of(context: SpanContext) -> str:
    """Return the W3C form of a span's place in its trace, sampled or not."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


@contextmanager
def span(  # noqa: PLR0913 - as OpenTelemetry has it
    tracer: Tracer,
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    context: Context | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    links: Sequence[Link] = (),
    start_time: int | None = None,
) -> Iterator[Span]:
    """Make a span current around the body; an error is told by its type and raised on."""
    one = tracer.start_span(name, context=context, kind=kind, attributes=attributes, links=links, start_time=start_time)
    with trace.use_span(one, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield one
        except Exception as error:
            told(one, error)
            raise


def told(one: Span, error: Exception) -> None:
    """Tell how a part ended; a refusal is an answer, not a failure."""
    kind = type(error).__name__
    one.set_attribute(OUTCOME, kind)
    if isinstance(error, MachineError):
        failed(one, kind)


def failed(one: Span, kind: str) -> None:
    """Mark a span as failed."""
    one.set_attribute(ERROR_TYPE, kind)
    one.set_status(Status(StatusCode.ERROR))
