"""What surrounds the process, as the health checks see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import redis

from actors.kit.mailbox import MachineError
from service.adapters.redis_client import RedisUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.adapters.postgres import Postgres
    from service.adapters.redis_client import Redis
    from service.http.health import Verdict

LATE_SECONDS = 60  # an owed mail that is older has missed the minute that people wait
PING: Final = "SELECT 1"
LATE_MAILS: Final = """
SELECT EXISTS (
    SELECT FROM mails WHERE state IN ('queued', 'sending') AND created_at < now() - make_interval(secs => %(late)s)
)
"""


class Surroundings:
    """The checks behind `/readyz` and `/api/v1/health`; none of them raises."""

    def __init__(self, postgres: Postgres, redis_: Redis) -> None:
        self._postgres = postgres
        self._redis = redis_
        self._notes: list[str] = []
        self.draining = False

    def drain(self) -> None:
        """Say from now on that the process is about to stop."""
        self.draining = True

    async def database(self) -> Verdict:
        """Try the database; `down` means that nothing can be registered."""
        try:
            await self._postgres.run(PING, reading=True)
        except MachineError:
            return "down"
        return "ok"

    async def redis(self) -> Verdict:
        """Try Redis; without it the limits are kept in the database."""
        try:
            await self._redis.call(redis.Redis.ping)
        except RedisUnavailable:
            return "degraded"
        return "ok"

    async def mail_queue(self) -> Verdict:
        """Look whether owed mails leave in time."""
        try:
            [[late]] = await self._postgres.run(LATE_MAILS, {"late": LATE_SECONDS}, reading=True)
        except MachineError:
            return "down"
        return "degraded" if late else "ok"

    def notes(self) -> Sequence[str]:
        """Return sentences for the operator."""
        return tuple(self._notes)

    def note(self, sentence: str) -> None:
        """Add a sentence, once."""
        if sentence not in self._notes:
            self._notes.append(sentence)
