from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from tests.fakes.http_service import FakeService, ScriptedHealth

if TYPE_CHECKING:
    from quart.typing import TestClientProtocol

    from service.http.health import Verdict


@pytest.fixture
def service() -> FakeService:
    """Return what the application talks to."""
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> TestClientProtocol:
    """Return a client of the application on Trio."""
    return service.app(loop="trio").test_client()


@pytest.mark.parametrize(
    ("verdicts", "word", "status"),
    [
        ({}, "ok", 200),
        ({"redis": "down"}, "degraded", 200),
        ({"mail_queue": "degraded"}, "degraded", 200),
        ({"redis": "down", "mail_queue": "down"}, "degraded", 200),
        ({"database": "down"}, "down", 503),
    ],
)
async def test_health_is_down_only_without_the_database(
    client: TestClientProtocol, service: FakeService, verdicts: dict[str, Verdict], word: str, status: int
) -> None:
    """Whatever else fails, the service is degraded and answers 200."""
    service.health.verdicts = verdicts
    service.health.said = ["Mind the gap."]
    answer = await client.get("/api/v1/health")
    body = await answer.get_json()
    assert answer.status_code == status
    assert body.pop("version")
    checks = {"database": "ok", "redis": "ok", "mail_queue": "ok"} | verdicts
    assert body == {"status": word, "checks": checks, "notes": ["Mind the gap."]}


async def test_a_check_that_hangs_has_failed(service: FakeService, autojump_clock: object) -> None:
    """The answer comes although a check never does."""
    assert autojump_clock

    class Hanging(ScriptedHealth):
        async def database(self) -> Verdict:
            await anyio.sleep_forever()
            raise AssertionError

    service.health = Hanging()
    client = service.app(loop="trio").test_client()
    with anyio.fail_after(3):
        answer = await client.get("/api/v1/health")
    assert (await answer.get_json())["checks"]["database"] == "down"
    assert (await client.get("/livez")).status_code == 200


async def test_ready_names_what_fails(client: TestClientProtocol, service: FakeService) -> None:
    """A process that drains or has no database takes no registrations; one without Redis does."""
    service.health.verdicts = {"redis": "down"}
    assert (await client.get("/readyz")).status_code == 200
    service.health.verdicts = {"database": "down"}
    service.health.draining = True
    answer = await client.get("/readyz")
    body = await answer.get_json(force=True)
    assert (answer.status_code, body["error"], body["failing"]) == (503, "NotReady", ["draining", "database"])
    assert (await client.get("/livez")).status_code == 200
