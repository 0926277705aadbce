from __future__ import annotations

import gzip
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan

from ops.traces import Collector, Span, decode, render
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = Path(__file__).resolve().parents[2] / "ops" / "traces.py"


def export() -> bytes:
    """Return two spans of two processes as they travel: a request, and a failed attempt to deliver its mail."""
    request = ExportTraceServiceRequest()
    for process, name, own, parent in (("api-1.0a", "POST /x", 1, 0), ("mail.0b", "process mails", 2, 1)):
        resource = request.resource_spans.add()
        resource.resource.attributes.add(key="service.instance.id").value.string_value = process
        span = resource.scope_spans.add().spans.add()
        span.trace_id, span.span_id = b"t" * 16, bytes([own]) * 8
        span.parent_span_id = bytes([parent]) * 8 if parent else b""
        span.name, span.kind = name, WireSpan.SPAN_KIND_SERVER if own == 1 else WireSpan.SPAN_KIND_CONSUMER
        span.start_time_unix_nano, span.end_time_unix_nano = own * 1_000_000, own * 1_000_000 + 2_500_000
        span.attributes.add(key="vestibule.mail.attempt").value.int_value = own
        span.attributes.add(key="http.route").value.string_value = "/x"
        span.links.add(span_id=b"l" * 8)
    span.status.code = span.status.STATUS_CODE_ERROR
    sent: bytes = request.SerializeToString()
    return sent


def send(port: int, data: bytes, path: str = "/v1/traces", **headers: str) -> int:
    """Post an export; return the status."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_trace_is_shown_as_a_tree() -> None:
    """What was inside what, where, when, how long, and what failed."""
    spans = list(decode(export()))
    assert spans[0].links == ((b"l" * 8).hex(),)
    assert render(spans[::-1]) == (
        f"trace {(b't' * 16).hex()}, 2 spans, 3.5 ms\n"
        f"{'':38} {'at ms':>8} {'ms':>8}\n"
        f"{'POST /x':38} {0.0:8.1f} {2.5:8.1f}  api-1 server attempt=1\n"
        f"{'  process mails':38} {1.0:8.1f} {2.5:8.1f}  mail consumer attempt=2 FAILED\n"
    )


def test_the_collector_takes_what_is_compressed_too() -> None:
    """It hands over each export and answers as a collector does; when told to, it refuses."""
    taken: list[list[Span]] = []
    with Collector(0, taken.append) as collector:
        assert send(collector.port, export()) == 200
        assert send(collector.port, gzip.compress(export()), **{"Content-Encoding": "gzip"}) == 200
        assert send(collector.port, b"", "/v1/metrics") == 200
        collector.status = 503
        assert send(collector.port, export()) == 503
    assert [len(spans) for spans in taken] == [2, 2]


@contextmanager
def traces(output: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the program around the body."""
    with output.open("wb") as sink:
        process = subprocess.Popen([sys.executable, PROGRAM, *arguments], stdout=sink, stderr=sink)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("name", "shown"), [("POST", True), ("GET", False)])
def test_the_program_prints_traces_that_are_quiet_and_asked_for(tmp_path: Path, name: str, *, shown: bool) -> None:
    """A trace is printed once nothing more comes, if a name is in it; Ctrl-C is an orderly end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    output = tmp_path / "output"
    with traces(output, "--port", str(port), "--quiet", "0", "--name", name) as process:
        wait_for(lambda: listens(port), "it listens")
        assert send(port, export()) == 200
        if shown:
            wait_for(output.read_text, "it prints")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert output.read_text().startswith("trace ") is shown


def listens(port: int) -> bool:
    """Return whether somebody does."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_port_that_is_taken_is_one_line() -> None:
    """It says which, and ends with 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run([sys.executable, PROGRAM, "--port", port], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"traces.py: cannot listen on port {port}: Address already in use\n")
