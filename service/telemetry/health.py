"""The health checks of one process."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import redis

from actors.kit.mailbox import MachineError
from service.postgres.pool import PROBE
from service.redis.client import RedisUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.http.health import Verdict
    from service.postgres.pool import Postgres
    from service.redis.client import Redis

LATE_SECONDS = 60  # an owed mail that is older has missed the minute that people wait
LATE_MAILS: Final = """
SELECT EXISTS (
    SELECT FROM vestibule.mails
    WHERE state IN ('queued', 'sending') AND owed_since < now() - make_interval(secs => %(late)s)
)
"""


# The reason that the last try for a mail still owed has left: a failing mail server is seen from its first failure.
FAILING: Final = """
SELECT reason FROM vestibule.mails WHERE state IN ('queued', 'sending') AND reason IS NOT NULL
ORDER BY due_at DESC LIMIT 1
"""


class HealthChecks:
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
            [(usable, _)] = await self._postgres.run(PROBE, reading=True)
        except MachineError:
            return "down"
        return "ok" if usable else "down"

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

    async def notes(self) -> Sequence[str]:
        """Return sentences for the operator, about what fails now and about what was noticed."""
        found = [f"Redis refuses: {self._redis.refusal}."] if self._redis.refusal else []
        with suppress(MachineError):  # the check of the database says so
            found += [f"The mail server: {reason}." for (reason,) in await self._postgres.run(FAILING, reading=True)]
        return (*found, *self._notes)

    def note(self, sentence: str) -> None:
        """Add a sentence, once."""
        if sentence not in self._notes:
            self._notes.append(sentence)
