from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from werkzeug.datastructures import Headers

from actors.domain import errors
from actors.kit.mailbox import AnswerLost, NotAccepted
from actors.ports import StoreUnavailable
from service.http.app import create_app
from service.settings import Settings
from tests.fakes.http_client import USERS, basic, problem, register
from tests.fakes.signup import EMAIL, PASSWORD, SOMEONE, TOKEN, FakeService

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
    """What the flows note on the visit becomes headers."""
    answer = await register(client)
    assert answer.headers["X-RateLimit-Limit"] == "5"
    assert answer.headers["X-RateLimit-Remaining"] == "4"
    assert "RateLimit-Policy" in answer.headers


async def test_register_under_strict_enumeration_tells_nothing(service: FakeService) -> None:
    """With ENUMERATION=strict the answer has no id, no times and no status address."""
    client = create_app(Settings(loop="trio", enumeration="strict"), service).test_client()
    answer = await register(client)
    assert answer.status_code == 202
    assert set(await answer.get_json()) == {"email", "is_activated", "message"}
    assert "Location" not in answer.headers


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
    assert service.signup.visit is not None
    assert service.signup.visit.traceparent == traceparent


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (errors.EmailTaken(), 409, "UserAlreadyExists"),
        (errors.IdempotencyKeyReused(), 409, "IdempotencyKeyReused"),
        (errors.RequestInProgress(1.0), 409, "RequestInProgress"),
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


@pytest.mark.parametrize(
    ("body", "media", "status"),
    [
        (b"{", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"{}", "application/json", 422),
        (b'{"email":"' + b"a" * 20_000 + b'"}', "application/json", 413),
    ],
)
async def test_register_counts_what_it_refuses(
    client: TestClientProtocol, service: FakeService, body: bytes, media: str, status: int
) -> None:
    """Refused registrations count against their client; accepted ones do not."""
    answer = await client.post(f"{USERS}/register", data=body, headers={"Content-Type": media})
    assert answer.status_code == status
    assert service.signup.refusals == 1
    await register(client)
    assert service.signup.refusals == 1


async def test_register_turns_the_unwelcome_away_before_reading(
    client: TestClientProtocol, service: FakeService
) -> None:
    """A client over its limit of refusals hears 429 whatever it sends."""
    service.signup.unwelcome = errors.RateLimited(30)
    answer = await client.post(f"{USERS}/register", data=b"\xff")
    await problem(answer, 429, "RateLimitExceeded")


async def test_a_refusal_beyond_the_limit_is_told_as_that(client: TestClientProtocol, service: FakeService) -> None:
    """Of many that come at once all are welcome, and only so many are counted; a 429 keeps its own wait."""
    service.signup.uncounted = errors.RateLimited(30)
    answer = await client.post(f"{USERS}/register", data=b"\xff")
    assert (await problem(answer, 429, "RateLimitExceeded"))["retry_after"] == 30
    assert answer.headers["Retry-After"] == "30"
    service.signup.failure = errors.CodesExhausted(3600)
    await problem(await register(client), 429, "CodesExhausted")


async def test_a_refusal_that_cannot_be_counted_is_told_as_it_is(
    client: TestClientProtocol, service: FakeService
) -> None:
    """The limits being away is nothing that the client has to know."""
    service.signup.uncounted = StoreUnavailable()
    await problem(await client.post(f"{USERS}/register", data=b"\xff"), 415, "UnsupportedMediaType")


async def test_other_calls_count_no_refusal(client: TestClientProtocol, service: FakeService) -> None:
    """The limit of refused registrations is for registrations."""
    await client.post(f"{USERS}/activate", json={}, headers=basic())
    assert service.signup.refusals == 0


async def test_two_idempotency_keys_are_a_validation_error(client: TestClientProtocol) -> None:
    """Nobody can say which of two keys was meant."""
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b"), ("Content-Type", "application/json")]
    body = f'{{"email":"{EMAIL}","password":"{PASSWORD}"}}'
    answer = await client.post(f"{USERS}/register", data=body, headers=Headers(headers))
    assert (await problem(answer, 422, "ValidationError"))["errors"][0]["field"] == "Idempotency-Key"
