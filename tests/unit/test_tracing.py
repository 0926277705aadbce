from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar
from uuid import UUID

import anyio
import anyio.lowlevel
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from actors.delivery import Delivery
from actors.domain.code import Keyring
from actors.domain.errors import EmailTaken
from actors.domain.mail import Deferred, Rejected, Unreached
from actors.kit.actor import Actor
from actors.kit.mailbox import Ask, NotAccepted
from actors.kit.supervisor import Supervisor
from actors.ports import NewCode, StoreUnavailable
from service.http.app import create_app
from service.settings import Settings
from service.traceparent import trace_id
from service.tracing.otel import Traced
from tests.fakes.asgi import JSON, call
from tests.fakes.outbox import MemoryOutbox, ScriptedPostman
from tests.fakes.signup import EMAIL, PASSWORD, TOKEN, FakeService

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from actors.delivery import Delivered
    from actors.domain.mail import ClaimedMail
    from actors.kit.mailbox import Letter

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
KEYRING = Keyring({"k1": b"1" * 32})
BODY = json.dumps({"email": EMAIL, "password": PASSWORD}).encode()


class Traces:
    """The traces of a process, kept in memory."""

    def __init__(self, *, sampled: bool = True) -> None:
        provider = TracerProvider(sampler=None if sampled else ALWAYS_OFF, shutdown_on_exit=False)
        self._kept = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracing = Traced(provider.get_tracer("test"))

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """Return what has ended, in the order of the beginnings."""
        found = [span for span in self._kept.get_finished_spans() if name in span.name]
        return sorted(found, key=lambda span: span.start_time or 0)


def ids(span: ReadableSpan) -> str:
    """Return a span's place as a traceparent."""
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


def parent(span: ReadableSpan) -> int | None:
    """Return the id of the span around it."""
    return span.parent.span_id if span.parent else None


@dataclass(frozen=True, slots=True)
class Issue(Ask[str]):
    """Owe a mail; answered with the trace context that it keeps."""

    code: NewCode
    error: Exception | None = None


class Issuer(Actor[Issue]):
    """Answers whole batches, and looks at what it was sent."""

    name = "Issuer"
    refusals: ClassVar[tuple[type[Exception], ...]] = (EmailTaken,)

    async def handle(self, letters: Sequence[Letter[Issue]]) -> None:
        """Answer each with its traceparent."""
        for letter in letters:
            message = letter.message
            if message.error is not None:
                letter.refuse(message.error)
            letter.answer(message.code.traceparent)


def new_code() -> NewCode:
    """Return a code to issue, without a trace context."""
    return NewCode(UUID(int=1), b"hash", KEYRING.code_id(UUID(int=2)), UUID(int=3), None)


async def test_a_request_is_a_server_span_named_by_its_route() -> None:
    """Route template, method and status are there, by the semantic conventions; nothing of the client is."""
    traces, service = Traces(), FakeService()
    app = traces.tracing.application(create_app(Settings(loop="trio"), service))
    secrets = [(b"authorization", b"Basic c2VjcmV0"), (b"x-forwarded-for", b"203.0.113.9"), (b"user-agent", b"agent")]
    await call(app, "GET", f"/api/v1/users/activation/{TOKEN}", secrets)
    [span] = traces.spans()
    assert span.name == "GET /api/v1/users/activation/{token}"
    assert span.kind is SpanKind.SERVER
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": "/api/v1/users/activation/{token}",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
    }
    assert (span.events, span.status.status_code) == ((), StatusCode.UNSET)


@pytest.mark.parametrize(("method", "name"), [("GET", "GET"), ("BREW", "HTTP")])
async def test_unknown_paths_and_methods_make_no_names(method: str, name: str) -> None:
    """Clients cannot make names of spans."""
    traces = Traces()
    await call(traces.tracing.application(create_app(Settings(loop="trio"), FakeService())), method, "/made/up")
    [span] = traces.spans()
    assert span.name == name
    assert "http.route" not in (span.attributes or {})


async def test_server_errors_fail_the_span_and_tell_no_text() -> None:
    """A crash is seen as its status alone; refusals of the client's are no failures."""
    traces, service = Traces(), FakeService()
    app = traces.tracing.application(create_app(Settings(loop="trio"), service))
    for failure in (ValueError(EMAIL), EmailTaken()):
        service.signup.failure = failure
        await call(app, "POST", "/api/v1/users/register", [JSON], BODY)
    crash, refusal = traces.spans()
    assert (crash.attributes or {})["error.type"] == "500"
    assert crash.status.status_code is StatusCode.ERROR
    assert refusal.status.status_code is StatusCode.UNSET
    assert EMAIL not in crash.to_json() + refusal.to_json()


async def test_the_callers_trace_goes_on_and_the_flows_hear_of_this_span() -> None:
    """The span is a child of the caller's, and what the flows keep of the trace is this request's own place in it."""
    traces, service = Traces(), FakeService()
    app = traces.tracing.application(create_app(Settings(loop="trio"), service))
    headers = [JSON, (b"traceparent", CALLER.encode()), (b"tracestate", b"vendor=1")]
    await call(app, "POST", "/api/v1/users/register", headers, BODY)
    [span] = traces.spans()
    assert f"{span.context.trace_id:032x}" == trace_id(CALLER)
    assert parent(span) == int(CALLER[36:52], 16)
    assert span.context.trace_state.get("vendor") == "1"
    assert service.signup.visit is not None
    assert service.signup.visit.traceparent == ids(span)


async def test_an_unsampled_request_still_has_its_place() -> None:
    """Nothing is exported, and what is kept says so to whoever goes on with the trace."""
    traces, service = Traces(sampled=False), FakeService()
    app = traces.tracing.application(create_app(Settings(loop="trio"), service))
    await call(app, "POST", "/api/v1/users/register", [JSON, (b"traceparent", CALLER.encode())], BODY)
    assert traces.spans() == []
    assert service.signup.visit is not None
    own = service.signup.visit.traceparent
    assert trace_id(own) == trace_id(CALLER)
    assert own != CALLER
    assert own is not None
    assert own.endswith("-00")


async def test_what_is_no_request_is_no_trace() -> None:
    """The lifespan and WebSockets pass untouched."""
    traces, seen = Traces(), []

    async def application(scope: dict[str, str], _receive: object, _send: object) -> None:
        seen.append(scope)

    lifespan = {"type": "lifespan"}
    await traces.tracing.application(application)(lifespan, None, None)
    assert seen == [lifespan]
    assert traces.spans() == []


async def test_asks_of_one_batch_share_a_span_that_is_linked_to_all(autojump_clock: object) -> None:
    """Two askers, one batch: a child of the first, a link to the other; each mail keeps its own asker's place."""
    traces, supervisor, answers = Traces(), Supervisor(lambda *_: None), {}
    issuer = traces.tracing.employ(supervisor, Issuer)

    async def ask(number: int) -> None:
        answers[number] = await issuer.ask(Issue(new_code()))

    async with supervisor.running(), anyio.create_task_group() as group:
        group.start_soon(ask, 1)
        group.start_soon(ask, 2)
    first, second = traces.spans("Issuer Issue")
    [batch] = traces.spans("Issuer batch")
    assert {first.kind, second.kind} == {SpanKind.PRODUCER}
    assert set(answers.values()) == {ids(first), ids(second)}
    assert (batch.attributes or {})["vestibule.batch.size"] == 2
    assert {parent(batch), *(link.context.span_id for link in batch.links)} == {
        first.context.span_id,
        second.context.span_id,
    }


@pytest.mark.parametrize(
    ("error", "status"),
    [(EmailTaken(), StatusCode.UNSET), (StoreUnavailable(), StatusCode.ERROR), (NotAccepted(), StatusCode.ERROR)],
)
async def test_refusals_are_outcomes_and_machine_errors_failures(error: Exception, status: StatusCode) -> None:
    """Both reach the asker as they would without traces, and are told by their type."""
    traces, supervisor = Traces(), Supervisor(lambda *_: None)
    issuer = traces.tracing.employ(supervisor, Issuer)
    async with supervisor.running():
        with pytest.raises(type(error)):
            await issuer.ask(Issue(new_code(), error))
    [span] = traces.spans("Issuer Issue")
    assert (span.attributes or {})["vestibule.outcome"] == type(error).__name__
    assert span.status.status_code is status
    assert span.events == ()


def raising(error: Exception) -> Callable[[ClaimedMail], Awaitable[None]]:
    """Return a step of a postman that ends so."""

    async def step(_mail: ClaimedMail) -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    return step


async def slow(_mail: ClaimedMail) -> None:
    """Take longer than the time after which a lease is renewed."""
    await anyio.sleep(6)


async def deliver(traces: Traces, outbox: MemoryOutbox, postman: ScriptedPostman, way: str = "smtp:") -> Delivered:
    """Claim what is due and deliver it, as the worker does, for the request of CALLER."""
    traced = traces.tracing.outbox(outbox)
    delivery = Delivery(
        traced,
        traces.tracing.postman(postman, way),
        KEYRING,
        code_ttl_seconds=60,
        chance=lambda: 0.0,
        new_number=lambda: UUID(int=7),
    )
    for mail in await traced.claim_due(5):
        delivered = await traces.tracing.delivery(delivery.deliver)(replace(mail, traceparent=CALLER))
    return delivered


async def test_each_delivery_of_a_mail_is_a_consumer_span_of_its_requests_trace() -> None:
    """A deferred attempt and the accepted one: attempt number, outcome and reply code on each, claim to writing."""
    traces, outbox, postman = Traces(), MemoryOutbox(), ScriptedPostman([raising(Deferred("451 4.3.0 at DATA"))])
    outbox.owe(KEYRING.code_id(UUID(int=2)))
    await deliver(traces, outbox, postman)
    outbox.advance(2)
    await deliver(traces, outbox, postman)
    first, second = traces.spans("process mails")
    assert {f"{span.context.trace_id:032x}" for span in traces.spans()} == {trace_id(CALLER)}
    assert {parent(first), parent(second)} == {int(CALLER[36:52], 16)}
    assert (first.kind, first.status.status_code) == (SpanKind.CONSUMER, StatusCode.ERROR)
    shown = [
        [(span.attributes or {}).get(f"vestibule.{name}") for name in ("mail.attempt", "outcome", "mail.reply_code")]
        for span in (first, second)
    ]
    assert shown == [[1, "deferred", 451], [2, "accepted", 250]]
    inside = [[span.name for span in traces.spans() if parent(span) == one.context.span_id] for one in (first, second)]
    assert inside == [["claim", "smtp send", "write deferred"], ["claim", "smtp send", "write accepted"]]
    assert first.start_time == traces.spans("claim")[0].start_time
    assert "ada@example.com" not in "".join(span.to_json() for span in traces.spans())


async def test_what_a_provider_refuses_for_good_is_told_with_its_status() -> None:
    """HTTP providers have their own codes; no SMTP code is made up for what they accept."""
    traces, outbox = Traces(), MemoryOutbox()
    postman = ScriptedPostman([raising(Rejected("HTTP 422 of the provider"))])
    for _ in range(2):
        outbox.owe(KEYRING.code_id(UUID(int=2)))
        await deliver(traces, outbox, postman, "https:")
    refused, accepted = traces.spans("http send")
    assert (refused.attributes or {})["vestibule.mail.reply_code"] == 422
    assert "vestibule.mail.reply_code" not in (accepted.attributes or {})
    assert [span.name for span in traces.spans("write")] == ["write dead", "write accepted"]


async def test_a_fresh_code_and_a_renewed_lease_are_seen(autojump_clock: object) -> None:
    """An old mail gets a fresh code first; a slow send renews its lease."""
    traces, outbox, postman = Traces(), MemoryOutbox(), ScriptedPostman([slow])
    outbox.owe(KEYRING.code_id(UUID(int=2)), age=870)
    await deliver(traces, outbox, postman)
    [delivery] = traces.spans("process mails")
    inside = [span.name for span in traces.spans() if parent(span) == delivery.context.span_id]
    assert sorted(inside) == ["claim", "fresh code", "renew lease", "smtp send", "write accepted"]


async def test_a_delivery_that_brings_others_forward_shows_it() -> None:
    """How many, and how long the statement took."""
    away = raising(Unreached("SMTPConnectError at connect"))
    traces, outbox, postman = Traces(), MemoryOutbox(), ScriptedPostman([away, away])
    for _ in range(3):
        outbox.owe(KEYRING.code_id(UUID(int=2)))
    await deliver(traces, outbox, postman)
    [hastening] = traces.spans("hasten")
    assert parent(hastening) == traces.spans("process mails")[2].context.span_id
    assert (hastening.attributes or {})["vestibule.mail.hastened"] == 2


async def test_a_mail_without_a_trace_begins_one() -> None:
    """A mail that was owed while traces were off, or by an operator, is a trace of its own; rung for, it is claimed."""
    traces, outbox = Traces(), MemoryOutbox()
    row = outbox.owe(KEYRING.code_id(UUID(int=2)))
    traced = traces.tracing.outbox(outbox)
    [mail] = await traced.claim([row.id])
    delivery = Delivery(
        traced, ScriptedPostman(), KEYRING, code_ttl_seconds=60, chance=lambda: 0.0, new_number=lambda: UUID(int=7)
    )
    await traces.tracing.delivery(delivery.deliver)(mail)
    [span] = traces.spans("process mails")
    assert span.parent is None
