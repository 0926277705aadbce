"""What the flows answer, as HTTP says it; what clients may send is tested end to end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.lowlevel
import pytest

from actors.domain import errors
from actors.kit.background import BackgroundTasks
from actors.kit.mailbox import AnswerLost, NotAccepted
from actors.ports import StoreUnavailable
from tests.fakes.asgi import JSON, ask, basic, call, scope_of, serve
from tests.fakes.http_service import CODE, EMAIL, PASSWORD, SOMEONE, TOKEN, FakeService, ScriptedSignUp

if TYPE_CHECKING:
    from actors.limits import Client
    from actors.signup import Form, Registration

USERS = "/api/v1/users"
WHO = basic(EMAIL, PASSWORD)
FORM = {"email": EMAIL, "password": PASSWORD}
BORN = "2026-01-02T03:04:05Z"


@pytest.fixture
def service() -> FakeService:
    """Return what the application talks to."""
    return FakeService()


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "expected"),
    [
        ("POST", "register", FORM, 201, {"id": str(SOMEONE), "email": EMAIL, "is_activated": False}),
        ("POST", "activate", {"code": CODE}, 200, {"email": EMAIL, "is_activated": True, "activated_at": BORN}),
        ("POST", "resend", None, 202, {"email": EMAIL, "resend_in": 30, "codes_left_today": 8}),
        ("POST", "resend", {}, 202, {"email": EMAIL, "resend_in": 30, "codes_left_today": 8}),
        ("GET", "activation", None, 200, {"email": EMAIL, "state": "accepted", "code_expires_in": 42, "resend_in": 0}),
        ("GET", f"activation/{TOKEN}", None, 200, {"state": "queued", "code_expires_in": None, "resend_in": 13}),
        ("GET", "me", None, 200, {"id": str(SOMEONE), "email": EMAIL, "is_activated": True}),
    ],
)
async def test_each_call_answers_with_the_fields_of_the_contract(  # noqa: PLR0913, PLR0917 - one call's figures
    service: FakeService, method: str, path: str, sent: object, status: int, expected: dict[str, object]
) -> None:
    """Durations are whole seconds, rounded up; nothing is kept by a cache."""
    answer = await ask(service.app(), method, f"{USERS}/{path}", sent, Authorization=WHO)
    assert (answer.status, answer.headers["cache-control"]) == (status, "no-store")
    body = answer.json
    assert {name: body.pop(name) for name in expected} == expected
    others = {"attempts_left": 5, "created_at": BORN, "activated_at": BORN, "status_url": f"{USERS}/activation/{TOKEN}"}
    assert all(body[name] == others[name] for name in body if name != "message")
    assert ("message" in body) is (method == "POST")
    if path == "register":
        assert answer.headers["location"] == body["status_url"]
        assert (answer.headers["x-ratelimit-limit"], answer.headers["x-ratelimit-remaining"]) == ("5", "4")


async def test_under_strict_enumeration_every_address_gets_the_same_answer(service: FakeService) -> None:
    """Register and resend answer 202 with the address as sent and a message: no id, no times, no status address."""
    service.signup.strict = True
    app = service.app(enumeration="strict")
    registered = await ask(app, "POST", f"{USERS}/register", FORM)
    resent = await ask(app, "POST", f"{USERS}/resend", Authorization=WHO)
    assert (registered.status, resent.status) == (202, 202)
    assert registered.json == resent.json
    assert registered.json.keys() == {"email", "message"}
    assert registered.json["email"] == EMAIL
    assert "location" not in registered.headers


async def test_nobody_can_say_which_of_two_keys_was_meant(service: FakeService) -> None:
    """Two Idempotency-Key headers are a wrong field."""
    keys = [(b"idempotency-key", b"a"), (b"idempotency-key", b"b")]
    answer = await call(service.app(), "POST", f"{USERS}/register", [JSON, *keys], json.dumps(FORM).encode())
    assert (answer.code, answer.json["errors"][0]["field"]) == ("ValidationError", "Idempotency-Key")


@pytest.mark.parametrize(
    ("failure", "status", "code", "members"),
    [
        (errors.ActivationFailed(), 400, "ActivationFailed", {}),
        (errors.WrongCode(4), 400, "InvalidActivationCode", {"attempts_left": 4}),
        (errors.WrongCode(5, superseded=True), 400, "InvalidActivationCode", {"attempts_left": 5, "superseded": True}),
        (errors.EmailTaken(), 409, "UserAlreadyExists", {}),
        (errors.IdempotencyKeyReused(), 409, "IdempotencyKeyReused", {}),
        (errors.AlreadyActivated(), 409, "UserAlreadyActivated", {}),
        (errors.CodeExpired(), 410, "ActivationCodeExpired", {"resend_url": f"{USERS}/resend"}),
        (errors.InvalidEmail("The domain is missing."), 422, "InvalidEmail", {"detail": "The domain is missing."}),
        (errors.WeakPassword(("common",)), 422, "WeakPassword", {"reasons": ["common"]}),
        (errors.CodesExhausted(1799.2), 429, "CodesExhausted", {"retry_after": 1800}),
        (errors.RateLimited(0.2), 429, "RateLimitExceeded", {"retry_after": 1}),
        (errors.ResendTooSoon(0.1), 429, "ResendTooSoon", {"retry_after": 1}),
        (errors.CodeAttemptsExhausted(9.1), 429, "CodeAttemptsExhausted", {"retry_after": 10}),
        (NotAccepted(2.5), 503, "Busy", {"retry_after": 3}),
        (StoreUnavailable(2.0), 503, "StoreUnavailable", {"retry_after": 2}),
        (AnswerLost(), 503, "OutcomeUnknown", {"retry_after": 1}),
        (RuntimeError("secret"), 500, "InternalError", {}),
    ],
)
async def test_every_failure_of_a_flow_is_a_problem_with_its_members(
    service: FakeService, failure: Exception, status: int, code: str, members: dict[str, object]
) -> None:
    """With the members of the contract and no others, and Retry-After where time heals it."""
    service.signup.failure = failure
    answer = await ask(service.app(), "POST", f"{USERS}/register", FORM)
    assert (answer.status, answer.code) == (status, code)
    assert answer.json.items() >= members.items()
    assert answer.json.keys() - members.keys() <= {"type", "title", "status", "detail", "error"}
    wait = members.get("retry_after")
    assert answer.headers.get("retry-after") == (None if wait is None else str(wait))
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("expected", "status", "code"),
    [(errors.RateLimited(11.2), 429, "RateLimitExceeded"), (NotAccepted(2.5), 503, "Busy")],
)
async def test_a_registration_without_room_is_refused_whatever_it_says(
    service: FakeService, expected: Exception, status: int, code: str
) -> None:
    """As the flow would refuse it, whatever its body; one with an idempotency key may have its answer already."""
    service.signup.expected = expected
    answer = await ask(service.app(), "POST", f"{USERS}/register", {"what": "ever"})
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["x-ratelimit-remaining"] == "0"
    assert [(seen.route, seen.status) for seen in await service.observations()] == [(f"POST {USERS}/register", status)]
    answer = await ask(service.app(), "POST", f"{USERS}/register", FORM, Idempotency_Key="k")
    assert answer.status == 201


async def test_a_registration_is_refused_when_its_body_has_come(service: FakeService) -> None:
    """A proxy that is still passing a body on would end its client's connection after the answer."""
    service.signup.expected = errors.RateLimited(1)
    pieces: list[dict[str, Any]] = [{"type": "http.request", "body": b"{", "more_body": more} for more in (False, True)]
    order: list[str] = []

    async def receive() -> dict[str, Any]:
        order.append("body")
        return pieces.pop()

    async def send(event: dict[str, Any]) -> None:
        order.append(str(event["type"]))

    await serve(service.app(), scope_of("POST", f"{USERS}/register", []), receive, send)
    assert order == ["body", "body", "http.response.start", "http.response.body"]


class SlowSignUp(ScriptedSignUp):
    """Registers when it may, and writes down what it has registered."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may = anyio.Event(), anyio.Event()
        self.done: list[str] = []

    async def register(self, client: Client, form: Form) -> Registration | None:
        """Wait, then register."""
        self.asked.set()
        await self.may.wait()
        self.done.append(form.email)
        return await super().register(client, form)


@pytest.mark.parametrize("loop", ["trio", "uvloop"])
def test_a_client_that_leaves_stops_nothing(loop: Literal["trio", "uvloop"]) -> None:
    """A flow that was begun goes on although its client is gone; nothing is sent, and no answer is counted."""

    async def leave() -> None:
        service, sent = FakeService(), list[object]()
        service.signup = signup = SlowSignUp()
        requests = [{"type": "http.request", "body": json.dumps(FORM).encode(), "more_body": False}]

        async def receive() -> dict[str, Any]:
            if requests:
                return requests.pop()
            await signup.asked.wait()
            await anyio.lowlevel.checkpoint()
            return {"type": "http.disconnect"}

        async def send(event: object) -> None:
            sent.append(event)

        async with BackgroundTasks.open() as service.background:
            scope = scope_of("POST", f"{USERS}/register", [JSON])
            await serve(service.app(loop=loop), scope, receive, send)
            assert not signup.done
            signup.may.set()
        assert signup.done == [EMAIL]
        assert sent == []
        assert await service.observations() == []

    anyio.run(leave, backend="trio" if loop == "trio" else "asyncio")
