from __future__ import annotations

import json
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.lowlevel
import pytest
from werkzeug.datastructures import Headers

from actors.domain import errors
from actors.kit.background import BackgroundTasks
from actors.kit.mailbox import AnswerLost, NotAccepted
from actors.ports import StoreUnavailable
from tests.fakes.asgi import JSON, scope_of, serve
from tests.fakes.http_client import CHALLENGE, USERS, basic, problem, register
from tests.fakes.http_service import BORN, CODE, EMAIL, PASSWORD, SOMEONE, TOKEN, FakeService, ScriptedSignUp

if TYPE_CHECKING:
    from quart.typing import TestClientProtocol

    from actors.limits import Client
    from actors.signup import Form, Registration


@pytest.fixture
def service() -> FakeService:
    """Return what the application talks to."""
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> TestClientProtocol:
    """Return a client of the application on Trio."""
    return service.app().test_client()


async def test_register_answers_201_with_the_account_and_its_status_address(client: TestClientProtocol) -> None:
    """The fields of the contract, a Location, no cache, and the closest limit."""
    answer = await register(client)
    assert answer.status_code == 201
    body = await answer.get_json()
    assert body.pop("message")
    assert body == {
        "id": str(SOMEONE),
        "email": EMAIL,
        "is_activated": False,
        "created_at": "2026-01-02T03:04:05Z",
        "status_url": f"{USERS}/activation/{TOKEN}",
    }
    assert (answer.headers["Location"], answer.headers["Cache-Control"]) == (body["status_url"], "no-store")
    assert (answer.headers["X-RateLimit-Limit"], answer.headers["X-RateLimit-Remaining"]) == ("5", "4")
    assert "RateLimit-Policy" in answer.headers


async def test_under_strict_enumeration_every_address_gets_the_same_answer(service: FakeService) -> None:
    """Register and resend answer 202 with the address as sent and a message: no id, no times, no status address."""
    service.signup.strict = True
    client = service.app(enumeration="strict").test_client()
    bodies = []
    for answer in (await register(client), await client.post(f"{USERS}/resend", headers=basic())):
        assert answer.status_code == 202
        assert "Location" not in answer.headers
        bodies.append(await answer.get_json())
    assert bodies[0] == bodies[1]
    assert bodies[0].keys() == {"email", "message"}
    assert bodies[0]["email"] == EMAIL


@pytest.mark.parametrize(
    ("locale", "accept", "chosen"),
    [("de", "en", "de"), (None, "fr, de;q=0.5", "de"), (None, "", "en"), ("xx", "de", "en"), ("de-AT", "", "de")],
)
async def test_register_chooses_the_language(
    client: TestClientProtocol, service: FakeService, locale: str | None, accept: str, chosen: str
) -> None:
    """The body's locale goes before Accept-Language, and English is the fallback."""
    await register(client, {"Accept-Language": accept}, locale=locale)
    assert service.signup.form is not None
    assert service.signup.form.locale == chosen


async def test_register_passes_the_idempotency_key_and_the_trace(
    client: TestClientProtocol, service: FakeService
) -> None:
    """Key and trace context reach the flows; nobody can say which of two keys was meant."""
    traceparent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    await register(client, {"Idempotency-Key": "k-1", "traceparent": traceparent})
    assert (service.signup.form and service.signup.form.idempotency_key) == "k-1"
    assert (service.signup.client and service.signup.client.traceparent) == traceparent
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b"), ("Content-Type", "application/json")]
    body = json.dumps({"email": EMAIL, "password": PASSWORD})
    answer = await client.post(f"{USERS}/register", data=body, headers=Headers(headers))
    assert (await problem(answer, 422, "ValidationError"))["errors"][0]["field"] == "Idempotency-Key"


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
async def test_every_failure_of_a_flow_is_a_problem_with_its_members(  # noqa: PLR0913, PLR0917 - one case's figures
    client: TestClientProtocol,
    service: FakeService,
    failure: Exception,
    status: int,
    code: str,
    members: dict[str, object],
) -> None:
    """Register and activate answer it alike, with the members of the contract and Retry-After where time heals it."""
    service.signup.failure = failure
    for answer in (
        await register(client),
        await client.post(f"{USERS}/activate", json={"code": CODE}, headers=basic()),
    ):
        body = await problem(answer, status, code)
        assert {name: body[name] for name in members} == members
        assert set(body) - set(members) <= {"type", "title", "status", "detail", "error"}
        assert answer.headers.get("Retry-After") == (str(members["retry_after"]) if "retry_after" in members else None)
        assert "secret" not in await answer.get_data(as_text=True)


@pytest.mark.parametrize("name", ["activation_code", "code"])
async def test_activate_takes_the_code_under_either_name(client: TestClientProtocol, name: str) -> None:
    """Blanks and hyphens in a code are ignored."""
    answer = await client.post(f"{USERS}/activate", json={name: " 012-345\n"}, headers=basic())
    assert answer.status_code == 200
    body = await answer.get_json()
    assert body.pop("message")
    assert body == {"email": EMAIL, "is_activated": True, "activated_at": "2026-01-02T03:04:05Z"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"code": 12345}, "code"),
        ({"code": "12345"}, "code"),
        ({"activation_code": "01234x"}, "activation_code"),
        ({"code": "٠١٢٣٤٥"}, "code"),
        ({"code": CODE, "activation_code": CODE}, "body"),
        ({}, "body"),
        ({"code": CODE, "extra": 1}, "extra"),
        ({"code": None}, "body"),
    ],
)
async def test_activate_refuses_what_is_no_code(
    client: TestClientProtocol, body: dict[str, object], field: str
) -> None:
    """Wrong types, wrong lengths, other digits, both names or none are 422 and name the field."""
    answer = await client.post(f"{USERS}/activate", json=body, headers=basic())
    assert (await problem(answer, 422, "ValidationError"))["errors"][0]["field"] == field


BROKEN = [
    {},
    *({"Authorization": value} for value in ("Basic", "Basic !!!", "Bearer abc")),
    *({"Authorization": "Basic " + b64encode(raw).decode()} for raw in (b"no colon", b"\xff:\xff")),
    basic(EMAIL, "with\x00nul"),
]


@pytest.mark.parametrize("headers", BROKEN)
@pytest.mark.parametrize(("method", "path"), [("POST", "resend"), ("GET", "me"), ("GET", "activation")])
async def test_broken_credentials_look_like_wrong_ones(
    client: TestClientProtocol, headers: dict[str, str], method: str, path: str
) -> None:
    """Body and headers of the 401 do not say what was wrong."""
    call = client.post if method == "POST" else client.get
    wrong = await call(f"{USERS}/{path}", headers=basic(password="wrong"))
    broken = await call(f"{USERS}/{path}", headers=headers)
    await problem(broken, 401, "InvalidCredentials")
    assert await broken.get_data() == await wrong.get_data()
    assert broken.headers["WWW-Authenticate"] == wrong.headers["WWW-Authenticate"] == CHALLENGE
    assert set(broken.headers.keys()) == set(wrong.headers.keys())


async def test_resend_answers_202(client: TestClientProtocol) -> None:
    """Durations are whole seconds, rounded up; no body is needed, an empty object is fine, another is not."""
    bodies: list[dict[str, Any]] = [{}, {"json": {}}]
    for options in bodies:
        answer = await client.post(f"{USERS}/resend", headers=basic(), **options)
        assert answer.status_code == 202
        body = await answer.get_json()
        assert body.pop("message")
        assert body == {"email": EMAIL, "resend_in": 30, "codes_left_today": 8}
    answer = await client.post(f"{USERS}/resend", headers=basic(), json={"email": EMAIL})
    await problem(answer, 422, "ValidationError")


async def test_activation_shows_the_state(client: TestClientProtocol) -> None:
    """With Basic auth the address is shown too; with a status address the state alone, and a forged one is 404."""
    mine = await (await client.get(f"{USERS}/activation", headers=basic())).get_json()
    assert mine == {"state": "accepted", "code_expires_in": 42, "attempts_left": 5, "resend_in": 0, "email": EMAIL}
    public = await (await client.get(f"{USERS}/activation/{TOKEN}")).get_json()
    assert public == {"state": "queued", "code_expires_in": None, "attempts_left": 5, "resend_in": 13}
    await problem(await client.get(f"{USERS}/activation/forged"), 404, "NotFound")


async def test_me_shows_the_account(client: TestClientProtocol) -> None:
    """The owner sees the account, which no cache keeps."""
    answer = await client.get(f"{USERS}/me", headers=basic())
    time = BORN.isoformat().replace("+00:00", "Z")
    shown = {"id": str(SOMEONE), "email": EMAIL, "is_activated": True, "created_at": time, "activated_at": time}
    assert await answer.get_json() == shown
    assert answer.headers["Cache-Control"] == "no-store"


async def test_forwarded_headers_of_others_are_noted_once(client: TestClientProtocol, service: FakeService) -> None:
    """A proxy that is not trusted is named in health, once, counted, and changes no client's address."""
    forwarded = {**basic(), "X-Forwarded-For": "192.0.2.7"}
    for _ in range(2):
        await client.get(f"{USERS}/me", headers=forwarded, scope_base={"client": ("198.51.100.4", 5)})
    assert (service.signup.client and service.signup.client.networks) == (("198.51.100.4", 1),)
    (note,) = (await (await client.get("/api/v1/health")).get_json())["notes"]
    assert "TRUSTED_PROXIES" in note
    assert service.noticed == {"forwarded_untrusted": 2}


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
        body = json.dumps({"email": EMAIL, "password": PASSWORD}).encode()
        requests = [{"type": "http.request", "body": body, "more_body": False}]

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
