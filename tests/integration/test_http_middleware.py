"""What is around every answer; what the edge refuses is tested at the real server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from loguru import logger

from tests.fakes.asgi import ask, call
from tests.fakes.http_service import EMAIL, PASSWORD, TOKEN, FakeService

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quart import Quart


@pytest.fixture
def service() -> FakeService:
    """Return what the application talks to."""
    return FakeService()


@pytest.fixture
def app(service: FakeService) -> Quart:
    """Return the application on Trio."""
    return service.app()


@pytest.mark.parametrize("request_line", ["GET /livez", "GET /nowhere", "DELETE /livez", "CONNECT host:443"])
async def test_every_answer_has_the_security_headers(service: FakeService, request_line: str) -> None:
    """None names a server's version; with an https PUBLIC_URL browsers are told to stay with it."""
    answer = await ask(service.app(), *request_line.split())
    secure = await ask(service.app(public_url="https://example.com"), *request_line.split())
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers
    assert secure.headers.keys() - answer.headers.keys() == {"strict-transport-security"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        *(([value], True) for value in (b"abc-123_X.y", b"a", b"x" * 64)),
        *(([value], False) for value in (b"x" * 65, b"", b"a b", b"\xff")),
        ([b"a", b"b"], False),
    ],
)
async def test_a_plain_request_id_of_the_caller_is_kept(app: Quart, given: list[bytes], *, kept: bool) -> None:
    """What could break a log line, or comes twice, is replaced by one of ours."""
    answer = await call(app, "GET", "/livez", [(b"X-Request-ID", value) for value in given])
    told = answer.headers["x-request-id"]
    assert (told.encode() == given[0]) is kept
    assert kept or (len(told) == 32 and told.isalnum())


async def test_a_wrong_method_is_told_the_right_ones(app: Quart) -> None:
    """405 names the methods of the path; HEAD is GET without a body, wherever there is GET."""
    refused = await ask(app, "DELETE", "/api/v1/users/register")
    assert (refused.code, set(refused.headers["allow"].split(", "))) == ("MethodNotAllowed", {"OPTIONS", "POST"})
    assert set((await ask(app, "BREW", "/livez")).headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    got, head = await ask(app, "GET", "/livez"), await ask(app, "HEAD", "/livez")
    assert (head.status, head.headers["content-length"], head.body) == (200, got.headers["content-length"], b"")
    assert (await ask(app, "HEAD", "/nowhere")).body == b""


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """Collect what is logged: the template and the extras."""
    collected: list[dict[str, Any]] = []
    sink = logger.add(lambda line: collected.append({"template": line.record["message"], **line.record["extra"]}))
    yield collected
    logger.remove(sink)


async def test_one_observation_per_answer(app: Quart, service: FakeService) -> None:
    """A route is its template; what matched none is one label."""
    for line in (f"GET /api/v1/users/activation/{TOKEN}", "GET /nowhere/1", "BREW /livez", "CONNECT host:1"):
        await ask(app, *line.split())
    seen = [(observation.route, observation.status) for observation in await service.observations()]
    unknown = [("unknown", status) for status in (404, 405, 405)]
    assert seen == [("GET /api/v1/users/activation/{token}", 200), *unknown]


async def test_one_line_of_log_per_answer(app: Quart, lines: list[dict[str, Any]]) -> None:
    """A line has id, template, status, time and the caller's trace, and nothing else that the client sent."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    told = {"X_Request_ID": "mine", "Traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    await ask(app, "POST", "/api/v1/users/register", {"email": EMAIL, "password": PASSWORD}, **told)
    (line,) = lines
    assert line.pop("ms") >= 0
    route = "POST /api/v1/users/register"
    assert line == {"template": "request", "request_id": "mine", "route": route, "status": 201, "trace_id": trace}


async def test_a_crash_is_logged_without_its_text(
    app: Quart, service: FakeService, lines: list[dict[str, Any]]
) -> None:
    """The type of an unknown error is logged and its 500 counted; its text, which may hold secrets, is not logged."""
    service.signup.failure = RuntimeError("hunter2")
    answer = await ask(app, "GET", f"/api/v1/users/activation/{TOKEN}")
    assert (answer.status, answer.code) == (500, "InternalError")
    assert [line["template"] for line in lines] == ["unhandled error", "request"]
    assert lines[0]["error"] == "RuntimeError"
    assert "hunter2" not in str(lines)
