from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from actors.domain.mail import Outcome
from service.postgres.pool import Postgres
from service.redis.client import Redis
from service.telemetry.health import LATE_SECONDS, HealthChecks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.conftest import Stores


@pytest.fixture
async def health(stores: Stores, valkey: str) -> AsyncIterator[HealthChecks]:
    """Give the checks of a process over a fresh database and an empty Redis."""
    async with Redis.open(valkey) as redis:
        yield HealthChecks(stores.postgres, redis)


async def test_all_is_well_at_first(health: HealthChecks) -> None:
    """Every check is ok, and there is nothing to note."""
    assert [await health.database(), await health.redis(), await health.mail_queue()] == ["ok"] * 3
    assert list(await health.notes()) == []


async def test_a_failing_mail_server_is_noted_from_its_first_failure_on(health: HealthChecks, stores: Stores) -> None:
    """The note has the server's words; the queue is degraded once a mail is late; both end with the acceptance."""
    await stores.registered()
    mail = await stores.claimed()
    await stores.settled(mail, Outcome.DEFERRED, "535 5.7.8 authentication failed at AUTH", 0.0)
    assert list(await health.notes()) == ["The mail server: 535 5.7.8 authentication failed at AUTH."]
    assert await health.mail_queue() == "ok"
    await stores.passed(LATE_SECONDS + 1)
    assert await health.mail_queue() == "degraded"
    assert await stores.queue.accepted([await stores.claimed()])
    assert await health.mail_queue() == "ok"
    assert list(await health.notes()) == []


async def test_what_was_noticed_is_noted_once(health: HealthChecks) -> None:
    """However often it was noticed."""
    health.note("Something.")
    health.note("Something.")
    assert list(await health.notes()) == ["Something."]


async def test_what_is_away_is_told() -> None:
    """Without Redis the limits are kept in the database, without that nothing can be registered; nothing raises."""
    async with (
        Postgres.open("postgresql://nobody@127.0.0.1:1/none") as postgres,
        Redis.open("redis://127.0.0.1:1") as redis,
    ):
        health = HealthChecks(postgres, redis)
        assert [await health.redis(), await health.database(), await health.mail_queue()] == [
            "degraded",
            "down",
            "down",
        ]
        assert list(await health.notes()) == []
