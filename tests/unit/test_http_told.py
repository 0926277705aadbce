from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from loguru import logger

from service.http.app import create_app
from service.settings import Settings
from tests.fakes.asgi import JSON, call
from tests.fakes.signup import EMAIL, PASSWORD, TOKEN, FakeService

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
    return create_app(Settings(loop="trio"), service)


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """Collect what is logged: the template and the extras."""
    collected: list[dict[str, Any]] = []
    sink = logger.add(lambda line: collected.append({"template": line.record["message"], **line.record["extra"]}))
    yield collected
    logger.remove(sink)


async def test_one_observation_per_answer(app: Quart, service: FakeService) -> None:
    """Routes are told by template, whatever matched none by one label."""
    await call(app, "GET", f"/api/v1/users/activation/{TOKEN}")
    await call(app, "GET", "/api/v1/users/activation/forged")
    await call(app, "GET", "/nowhere/1")
    await call(app, "BREW", "/livez")
    await call(app, "CONNECT", "host:1")
    seen = [(observation.route, observation.status) for observation in await service.observations()]
    template = "GET /api/v1/users/activation/{token}"
    unknown = [("unknown", status) for status in (404, 405, 405)]
    assert seen == [(template, 200), (template, 404), *unknown]


async def test_one_line_of_log_per_answer(app: Quart, lines: list[dict[str, Any]]) -> None:
    """A line has id, template, status and time, and nothing that the client sent."""
    body = json.dumps({"email": EMAIL, "password": PASSWORD}).encode()
    await call(
        app, "POST", "/api/v1/users/register", [JSON, (b"x-request-id", b"mine")], body, query_string=b"q=secret"
    )
    (line,) = lines
    took = line.pop("ms")
    assert took >= 0
    assert line == {"template": "request", "request_id": "mine", "route": "POST /api/v1/users/register", "status": 201}


async def test_the_line_names_the_callers_trace(app: Quart, lines: list[dict[str, Any]]) -> None:
    """With a trace context of the caller the line has the trace id, with traces off too."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    await call(app, "GET", "/livez", [(b"traceparent", f"00-{trace}-00f067aa0ba902b7-01".encode())])
    assert [line["trace_id"] for line in lines] == [trace]


async def test_a_crash_is_logged_without_its_text(
    app: Quart, service: FakeService, lines: list[dict[str, Any]]
) -> None:
    """The type of an unknown error is logged and its 500 counted; its text, which may hold secrets, is not logged."""
    service.signup.failure = RuntimeError("hunter2")
    answer = await call(app, "GET", f"/api/v1/users/activation/{TOKEN}")
    assert (answer.status, answer.code) == (500, "InternalError")
    assert [line["template"] for line in lines] == ["unhandled error", "request"]
    assert lines[0]["error"] == "RuntimeError"
    assert "hunter2" not in str(lines)
