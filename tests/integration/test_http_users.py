from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.datastructures import Headers

from actors.domain import errors
from actors.kit.mailbox import AnswerLost, NotAccepted
from actors.ports import StoreUnavailable
from tests.fakes.http_client import CHALLENGE, USERS, basic, problem, register
from tests.fakes.http_service import BORN, CODE, EMAIL, PASSWORD, SOMEONE, TOKEN, FakeService

if TYPE_CHECKING:
    from quart.typing import TestClientProtocol


@pytest.fixture
def service() -> FakeService:
    """Return what the application talks to."""
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> TestClientProtocol:
    """Return a client of the application on Trio."""
    return service.app(loop="trio").test_client()


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


@pytest.mark.parametrize(
    ("failure", "status", "code", "members"),
    [
        (errors.ActivationFailed(), 400, "ActivationFailed", {}),
        (errors.WrongCode(4), 400, "InvalidActivationCode", {"attempts_left": 4}),
        (errors.WrongCode(5, superseded=True), 400, "InvalidActivationCode", {"attempts_left": 5, "superseded": True}),
        (errors.AlreadyActivated(), 409, "UserAlreadyActivated", {}),
        (errors.CodeExpired(), 410, "ActivationCodeExpired", {"resend_url": f"{USERS}/resend"}),
        (errors.CodeAttemptsExhausted(9.1), 429, "CodeAttemptsExhausted", {"retry_after": 10}),
        (errors.ResendTooSoon(0.1), 429, "ResendTooSoon", {"retry_after": 1}),
    ],
)
async def test_activate_tells_every_refusal(  # noqa: PLR0913, PLR0917 - the fixtures and the figures of one case
    client: TestClientProtocol,
    service: FakeService,
    failure: Exception,
    status: int,
    code: str,
    members: dict[str, object],
) -> None:
    """Each refusal has the members of the contract."""
    service.signup.failure = failure
    answer = await client.post(f"{USERS}/activate", json={"code": CODE}, headers=basic())
    body = await problem(answer, status, code)
    assert {name: body[name] for name in members} == members
    assert set(body) - set(members) == {"type", "title", "status", "detail", "error"}


BROKEN = [
    {},
    {"Authorization": "Basic"},
    {"Authorization": "Basic !!!"},
    {"Authorization": "Basic " + b64encode(b"no colon").decode()},
    {"Authorization": "Basic " + b64encode(b"\xff:\xff").decode()},
    {"Authorization": "Bearer abc"},
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
    """With Basic auth the address is shown too; with a status address the state and nothing else."""
    mine = await (await client.get(f"{USERS}/activation", headers=basic())).get_json()
    assert mine == {"state": "accepted", "code_expires_in": 42, "attempts_left": 5, "resend_in": 0, "email": EMAIL}
    public = await (await client.get(f"{USERS}/activation/{TOKEN}")).get_json()
    assert public == {"state": "queued", "code_expires_in": None, "attempts_left": 5, "resend_in": 13}


async def test_an_unknown_status_address_is_404(client: TestClientProtocol) -> None:
    """Forged tokens and old ones are told apart by nobody."""
    await problem(await client.get(f"{USERS}/activation/forged"), 404, "NotFound")


async def test_me_shows_the_account(client: TestClientProtocol) -> None:
    """The owner sees the account, which no cache keeps."""
    answer = await client.get(f"{USERS}/me", headers=basic())
    moment = BORN.isoformat().replace("+00:00", "Z")
    assert await answer.get_json() == {
        "id": str(SOMEONE),
        "email": EMAIL,
        "is_activated": True,
        "created_at": moment,
        "activated_at": moment,
    }
    assert answer.headers["Cache-Control"] == "no-store"


async def test_forwarded_headers_of_strangers_are_noted_once(client: TestClientProtocol, service: FakeService) -> None:
    """A proxy that is not trusted is told to the operator in health, once, counted, and changes no client's address."""
    forwarded = {**basic(), "X-Forwarded-For": "192.0.2.7"}
    for _ in range(2):
        await client.get(f"{USERS}/me", headers=forwarded, scope_base={"client": ("198.51.100.4", 5)})
    assert service.signup.client is not None
    assert service.signup.client.networks == (("198.51.100.4", 1),)
    (note,) = (await (await client.get("/api/v1/health")).get_json())["notes"]
    assert "TRUSTED_PROXIES" in note
    assert service.noticed == {"forwarded_untrusted": 2}


async def test_register_answers_201_with_the_account_and_its_status_address(client: TestClientProtocol) -> None:
    """A registration is answered with the fields of the contract and a Location."""
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
    assert answer.headers["Location"] == body["status_url"]
    assert answer.headers["Cache-Control"] == "no-store"


async def test_register_shows_the_closest_limit(client: TestClientProtocol) -> None:
    """What the flows note on the client becomes headers."""
    answer = await register(client)
    assert answer.headers["X-RateLimit-Limit"] == "5"
    assert answer.headers["X-RateLimit-Remaining"] == "4"
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
    """Key and trace context reach the flows."""
    traceparent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    await register(client, {"Idempotency-Key": "k-1", "traceparent": traceparent})
    assert service.signup.form is not None
    assert service.signup.form.idempotency_key == "k-1"
    assert service.signup.client is not None
    assert service.signup.client.traceparent == traceparent


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (errors.EmailTaken(), 409, "UserAlreadyExists"),
        (errors.IdempotencyKeyReused(), 409, "IdempotencyKeyReused"),
        (errors.InvalidEmail("The domain is missing."), 422, "InvalidEmail"),
        (errors.WeakPassword(("common",)), 422, "WeakPassword"),
        (errors.CodesExhausted(1799.2), 429, "CodesExhausted"),
        (errors.RateLimited(0.2), 429, "RateLimitExceeded"),
        (NotAccepted(2.5), 503, "Busy"),
        (StoreUnavailable(2.0), 503, "StoreUnavailable"),
        (AnswerLost(), 503, "OutcomeUnknown"),
        (RuntimeError("with a secret"), 500, "InternalError"),
    ],
)
async def test_register_tells_every_failure_as_a_problem(
    client: TestClientProtocol, service: FakeService, failure: Exception, status: int, code: str
) -> None:
    """Each failure has its status and code, and a Retry-After where time heals it."""
    service.signup.failure = failure
    answer = await register(client)
    body = await problem(answer, status, code)
    if hasattr(failure, "retry_after") and failure.retry_after is not None:
        assert int(answer.headers["Retry-After"]) == body["retry_after"] >= failure.retry_after
    assert "secret" not in await answer.get_data(as_text=True)


async def test_two_idempotency_keys_are_a_validation_error(client: TestClientProtocol) -> None:
    """Nobody can say which of two keys was meant."""
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b"), ("Content-Type", "application/json")]
    body = f'{{"email":"{EMAIL}","password":"{PASSWORD}"}}'
    answer = await client.post(f"{USERS}/register", data=body, headers=Headers(headers))
    assert (await problem(answer, 422, "ValidationError"))["errors"][0]["field"] == "Idempotency-Key"
