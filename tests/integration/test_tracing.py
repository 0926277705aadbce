from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from actors.authentication import Authentication
from actors.code_issuer import CodeIssuer
from actors.domain.code import Keyring
from actors.domain.mail import Deferred
from actors.kit.background import BackgroundTasks
from actors.kit.supervisor import Supervisor
from actors.limits import ClientLimits
from actors.password_hasher import PasswordHasher
from actors.rate_limiter import RateLimiter
from actors.signup import SignUp
from actors.user_registry import UserRegistry
from service.http.middleware import EXCHANGE
from service.passwords import EmailAddresses
from service.settings import SettingsError
from service.telemetry.spans import FLUSH_SECONDS, Spans, opened
from service.telemetry.tracing import check, endpoint
from tests.fakes.accounts import POLICY
from tests.fakes.asgi import JSON, call
from tests.fakes.clock import FakeClock
from tests.fakes.flows import LIMITS, FakeWakeups
from tests.fakes.hashing import DUMMY, FakeHashing
from tests.fakes.http_service import EMAIL, PASSWORD, TOKEN, FakeService
from tests.fakes.rate_limits import FakeRateLimits
from tests.servers.waiting import patience

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.integration.conftest import Stores

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = (b"traceparent", f"00-{TRACE}-{CALLER}-01".encode())
BODY = json.dumps({"email": EMAIL, "password": PASSWORD}).encode()


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Keep the spans of a test."""
    return InMemorySpanExporter()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    """Make spans that are kept as soon as they end."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Spans(provider.get_tracer("test"))


def flows(spans: Spans, supervisor: Supervisor, stores: Stores) -> SignUp:
    """Return the flows over traced actors and a real database."""
    limiter = spans.start(supervisor, lambda: RateLimiter(FakeRateLimits(FakeClock()), Counter()))
    hasher = spans.start(supervisor, lambda: PasswordHasher(FakeHashing(), limiter, 2, DUMMY), copies=2)
    registry = spans.start(supervisor, lambda: UserRegistry(stores.accounts, POLICY))
    issuer = spans.start(supervisor, lambda: CodeIssuer(stores.accounts, FakeWakeups()))
    keyring, addresses = Keyring({"k1": bytes(32)}), EmailAddresses()
    limits = ClientLimits(limiter, LIMITS, keyring, Counter())
    return SignUp(
        registry=registry,
        hasher=hasher,
        issuer=issuer,
        limits=limits,
        authentication=Authentication(registry=registry, hasher=hasher, limits=limits, addresses=addresses),
        keyring=keyring,
        policy=POLICY,
        addresses=addresses,
        common_passwords=set(),
        new_id=uuid4,
    )


async def test_a_registration_its_statements_and_its_mail_are_one_trace(
    spans: Spans, exporter: InMemorySpanExporter, stores: Stores
) -> None:
    """The request, its hash and statement, a refused send and its retry hang together below the caller's span."""
    supervisor, service = Supervisor(lambda *_: None), FakeService()
    service.signup = flows(spans, supervisor, stores)  # type: ignore[assignment]  # the real one
    async with supervisor.running(), BackgroundTasks.open() as service.background:
        app: Any = spans.application(service.app(), EXCHANGE)
        answer = await call(app, "POST", "/api/v1/users/register", [JSON, TRACEPARENT], BODY)
        assert answer.status == 201
    mail = await stores.claimed()
    with suppress(Deferred), spans.mail(mail):
        raise Deferred("451 4.3.0 later")
    with spans.mail(mail):
        pass
    check_tree([span for span in exporter.get_finished_spans() if span.context.trace_id == int(TRACE, 16)])
    said = " ".join(span.to_json() for span in exporter.get_finished_spans())
    secrets = (EMAIL, PASSWORD, json.loads(answer.body)["status_url"], "127.0.0.1", "localhost")
    assert not [secret for secret in secrets if secret in said]


def check_tree(found: Sequence[ReadableSpan]) -> None:
    """Hold a trace to what a registration with one retry of its mail is made of."""
    [server] = [span for span in found if span.kind == SpanKind.SERVER]
    assert parent(server) == int(CALLER, 16)
    assert server.name == "POST /api/v1/users/register"
    assert (server.attributes or {})["http.response.status_code"] == 201
    asks = {span.name: span for span in found if parent(span) == server.context.span_id}
    assert {"RateLimiter Admit", "PasswordHasher Hash", "UserRegistry Look", "UserRegistry Register"} <= asks.keys()
    sends = [span for span in found if span.kind == SpanKind.CONSUMER]
    assert [parent(span) for span in sends] == [server.context.span_id] * 2
    assert [(span.attributes or {}).get("error.type") for span in sends] == ["Deferred", None]
    assert [span.status.is_ok for span in sends] == [False, True]


def parent(span: ReadableSpan) -> int:
    """Return the id of the span above; 0 for none."""
    return span.parent.span_id if span.parent else 0


async def test_a_span_is_named_by_its_route_and_not_by_its_path(spans: Spans, exporter: InMemorySpanExporter) -> None:
    """A status address, an unknown path and a crash leave nothing of the request and of the error in the trace."""
    service = FakeService()
    app: Any = spans.application(service.app(public_url="https://example.org/auth"), EXCHANGE)
    await call(app, "GET", f"/auth/api/v1/users/activation/{TOKEN}", query_string=b"q=secret")
    await call(app, "GET", "/secret")
    service.signup.failure = RuntimeError("secret")
    await call(app, "GET", f"/api/v1/users/activation/{TOKEN}")
    found = exporter.get_finished_spans()
    route = "GET /api/v1/users/activation/{token}"
    assert [(span.name, span.status.is_ok) for span in found] == [(route, True), ("unknown", True), (route, False)]
    said = " ".join(span.to_json() for span in found)
    assert TOKEN not in said
    assert "secret" not in said


class Stuck(SpanExporter):
    """A collector that takes no span until the test ends."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Wait."""
        assert spans
        self.go_on.wait()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is kept here."""


async def test_a_silent_collector_holds_up_no_end() -> None:
    """The last spans get some seconds, whatever the collector does."""
    collector = Stuck()
    began = anyio.current_time()
    async with opened("api-1", collector) as traces:
        with traces.span("one"):
            pass
    took = anyio.current_time() - began
    collector.go_on.set()
    assert took < patience(FLUSH_SECONDS + 1)


ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
ENVIRONMENTS: list[tuple[dict[str, str], bool | str]] = [
    ({}, False),
    ({ENDPOINT: " "}, False),
    ({ENDPOINT: "http://127.0.0.1:4318"}, True),
    ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector/v1/traces"}, True),
    ({ENDPOINT: "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ({ENDPOINT: "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ({ENDPOINT: "collector:4317"}, f"{ENDPOINT}: must be http://… or https://…, to which OTLP goes in protobuf"),
]


@pytest.mark.parametrize(("environ", "expected"), ENVIRONMENTS)
def test_traces_are_made_where_there_is_a_collector(environ: dict[str, str], expected: bool | str) -> None:  # noqa: FBT001 - a column
    """An endpoint wants them, OpenTelemetry's own switches turn them off, and a mistake ends the start with a line."""
    if isinstance(expected, str):
        with pytest.raises(SettingsError, match=re.escape(expected)):
            check(environ)
    else:
        check(environ)
        assert (endpoint(environ) is not None) is expected


def test_without_a_collector_nothing_of_opentelemetry_is_imported() -> None:
    """Neither by us nor by a driver, and the application is as it is."""
    program = """
import anyio, os, sys
from service.telemetry.tracing import check, tracing
check(os.environ)
import service.wiring
async def main():
    async with tracing("api-1") as traces:
        assert traces.application(main, "") is main
anyio.run(main)
assert not [name for name, module in sys.modules.items() if name.startswith("opentelemetry") and module]
"""
    subprocess.run([sys.executable, "-c", program], env={}, check=True)
