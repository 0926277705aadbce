from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest

from actors.domain import errors
from service.http.app import create_app
from service.settings import Settings
from tests.fakes.http_client import CHALLENGE, USERS, basic, problem
from tests.fakes.signup import BORN, CODE, EMAIL, SOMEONE, TOKEN, FakeService

if TYPE_CHECKING:
    from quart.typing import TestClientProtocol


@pytest.fixture
def service() -> FakeService:
    """Return what the application talks to."""
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> TestClientProtocol:
    """Return a client of the application on Trio."""
    return create_app(Settings(loop="trio"), service).test_client()


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
    assert service.signup.visit is not None
    assert service.signup.visit.networks == (("198.51.100.4", 1),)
    (note,) = (await (await client.get("/api/v1/health")).get_json())["notes"]
    assert "TRUSTED_PROXIES" in note
    assert service.noticed == {"forwarded_untrusted": 2}
