#!/usr/bin/env python3
"""A collector of OpenTelemetry's traces for one machine: takes OTLP over HTTP and prints each trace as a tree.

For a look at where a request's time goes without a tracing system; it keeps nothing.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import TYPE_CHECKING, Self

try:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceRequest,
        ExportTraceServiceResponse,
    )
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
except ModuleNotFoundError as missing:
    sys.exit(f"traces.py: needs the package {missing.name} (the extra `otel`)")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

EXAMPLES = """\
examples:
  python ops/traces.py                                                    in one terminal
  OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 just up               in another
"""
QUIET_SECONDS = 6.0  # a trace is printed when nothing of it has come for so long; processes export every 5 s
NAME_WIDTH, MOST_BYTES = 38, 64 * 1024 * 1024
DULL = (
    "http.request.",
    "http.route",
    "url.",
    "network.protocol.",
    "messaging.operation",
    "messaging.system",
    "messaging.dest",
    "error.type",
)
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Span:
    """One span as it came over the wire; ids in hex, times in nanoseconds."""

    trace: str
    id: str
    parent: str
    name: str
    kind: str
    process: str
    start: int
    end: int
    failed: bool
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    links: tuple[str, ...] = ()

    @property
    def milliseconds(self) -> float:
        """How long it took."""
        return (self.end - self.start) / MILLION


def decode(data: bytes) -> Iterator[Span]:
    """Return the spans of one export."""
    request = ExportTraceServiceRequest.FromString(data)
    for resource in request.resource_spans:
        process = str(_attributes(resource.resource.attributes).get("service.instance.id", "?"))
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _span(span, process)


def _span(span: WireSpan, process: str) -> Span:
    return Span(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        WireSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        process,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == span.status.STATUS_CODE_ERROR,
        _attributes(span.attributes),
        tuple(link.span_id.hex() for link in span.links),
    )


def _attributes(pairs: Sequence[KeyValue]) -> dict[str, str | int | float | bool]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}


def render(spans: Sequence[Span]) -> str:
    """Return one trace as text: what was inside what, in which process, when it began and how long it took."""
    known = {span.id for span in spans}
    children: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        children[span.parent if span.parent in known else ""].append(span)
    begun = min(span.start for span in spans)
    took = (max(span.end for span in spans) - begun) / MILLION
    lines = [f"trace {spans[0].trace}, {len(spans)} spans, {took:.1f} ms", f"{'':{NAME_WIDTH}} {'at ms':>8} {'ms':>8}"]

    def add(parent: str, depth: int) -> None:
        for span in children[parent]:
            lines.append(_line(span, depth, begun))
            add(span.id, depth + 1)

    add("", 0)
    return "\n".join(lines) + "\n"


def _line(span: Span, depth: int, begun: int) -> str:
    name = "  " * depth + span.name
    at = (span.start - begun) / MILLION
    shown = [f"{key.rpartition('.')[2]}={value}" for key, value in span.attributes.items() if not key.startswith(DULL)]
    kind = "" if span.kind == "internal" else f" {span.kind}"
    rest = " ".join([f"{span.process.partition('.')[0]}{kind}", *shown, *(["FAILED"] if span.failed else [])])
    return f"{name:{NAME_WIDTH}} {at:8.1f} {span.milliseconds:8.1f}  {rest}".rstrip()


class Collector:
    """Listens on 127.0.0.1 around the body and hands every batch of spans to `take`, in threads of its own.

    A `status` other than 200 refuses what comes, as a collector with a full queue does.
    """

    def __init__(self, port: int, take: Callable[[list[Span]], None]) -> None:
        self.status = 200
        collector = self

        class Handler(BaseHTTPRequestHandler):
            """Takes one export."""

            def do_POST(self) -> None:
                """Decode and hand over."""
                size = min(int(self.headers.get("Content-Length", "0")), MOST_BYTES)
                data = self.rfile.read(size)
                if collector.status == HTTPStatus.OK and self.path == "/v1/traces":
                    take(list(decode(gzip.decompress(data) if self.headers.get("Content-Encoding") else data)))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(collector.status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.port = self._server.server_port

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()


class Traces:
    """Spans by trace, until the trace has been quiet for a while."""

    def __init__(self, quiet: float) -> None:
        self._quiet = quiet
        self._guard = threading.Lock()
        self._spans: dict[str, list[Span]] = defaultdict(list)
        self._heard: dict[str, float] = {}

    def take(self, spans: list[Span]) -> None:
        """Add a batch."""
        with self._guard:
            for span in spans:
                self._spans[span.trace].append(span)
                self._heard[span.trace] = monotonic()

    def finished(self) -> list[list[Span]]:
        """Return the traces that are quiet, the oldest first, and forget them."""
        with self._guard:
            quiet = [trace for trace, heard in self._heard.items() if monotonic() - heard >= self._quiet]
            for trace in quiet:
                del self._heard[trace]
            return [self._spans.pop(trace) for trace in quiet]


def main(arguments: Sequence[str] | None = None) -> int:
    """Listen and print until Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=4318, help="the port of 127.0.0.1 to listen on (4318)")
    parser.add_argument("--quiet", type=float, default=QUIET_SECONDS, help="seconds without news that end a trace (6)")
    parser.add_argument("--name", default="", help="only traces that have a span whose name contains this")
    options = parser.parse_args(arguments)
    traces, pause = Traces(options.quiet), threading.Event()
    try:
        with Collector(options.port, traces.take):
            while not pause.wait(0.2):
                for spans in traces.finished():
                    if any(options.name in span.name for span in spans):
                        print(render(spans), flush=True)
    except OSError as error:
        print(f"traces.py: cannot listen on port {options.port}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
