"""Sliding windows in Postgres, for as long as Redis is away: exact over all workers, on the database's clock."""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from actors.domain.windows import Admission, Reading
from actors.kit.mailbox import AnswerLost
from actors.ports import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import LiteralString

    from actors.domain.windows import Bucket, Use
    from actors.ports import WindowRequest
    from service.adapters.postgres import Postgres

CLEAN_BATCH = 1000  # rows in one statement: a few milliseconds, in which nobody waits for a lock of ours

# The function is in 0002_windows.sql: it locks the buckets in one order, then decides request after request.
DECIDE: Final = "SELECT admitted, remaining, reset_seconds FROM decide_windows(%(asked)s::jsonb)"
GIVE_BACK: Final = """
DELETE FROM window_uses u USING unnest(%(buckets)s::text[], %(tickets)s::text[]) AS g (bucket, ticket)
WHERE u.bucket = g.bucket AND u.ticket = g.ticket
"""
LOAD: Final = """
INSERT INTO window_uses (bucket, ticket, expires_at)
SELECT l.bucket, l.ticket, clock_timestamp() + make_interval(secs => l.seconds)
FROM unnest(%(buckets)s::text[], %(tickets)s::text[], %(seconds)s::float8[]) AS l (bucket, ticket, seconds)
ORDER BY l.bucket, l.ticket
ON CONFLICT DO NOTHING
"""
# Race: several cleaners, and uses that are given back meanwhile. Rows in someone's hands are passed over.
CLEAN: Final = """
DELETE FROM window_uses u USING (
    SELECT bucket, ticket FROM window_uses WHERE expires_at < clock_timestamp()
    ORDER BY expires_at LIMIT %(rows)s FOR UPDATE SKIP LOCKED
) AS dead
WHERE u.bucket = dead.bucket AND u.ticket = dead.ticket
RETURNING 1
"""


class PostgresWindows:
    """The Windows port on Postgres.

    A lost answer is a StoreUnavailable, since a repeat does no harm: what was counted for nobody its window heals.
    """

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def decide(self, asked: Sequence[WindowRequest]) -> list[Admission]:
        """Decide each request atomically, in order, in one statement for all."""
        rows = iter(await self._run(DECIDE, {"asked": json.dumps([_asked(request) for request in asked])}))
        return [_admission(request, list(islice(rows, len(request.buckets)))) for request in asked]

    async def give_back(self, given: Sequence[tuple[tuple[Bucket, ...], str]]) -> None:
        """Remove what each ticket counted in its buckets."""
        pairs = [(digest(bucket), ticket) for buckets, ticket in given for bucket in buckets]
        await self._run(GIVE_BACK, {"buckets": [b for b, _ in pairs], "tickets": [t for _, t in pairs]})

    async def load(self, uses: Sequence[Use]) -> None:
        """Count what another store admitted, whatever the limits; a use that is known already counts once."""
        await self._run(
            LOAD,
            {
                "buckets": [digest(use.bucket) for use in uses],
                "tickets": [use.ticket for use in uses],
                "seconds": [use.left_seconds for use in uses],
            },
        )

    async def clean(self) -> None:
        """Remove all uses that count no more."""
        while len(await self._run(CLEAN, {"rows": CLEAN_BATCH})) == CLEAN_BATCH:
            pass

    async def _run(self, sql: LiteralString, parameters: Mapping[str, object]) -> list[tuple[Any, ...]]:
        try:
            return await self._postgres.run(sql, parameters)
        except AnswerLost:
            raise StoreUnavailable from None


def digest(bucket: Bucket) -> str:
    """Return the bucket's name in the table, which names no client; 128 bits, so that no two share a window."""
    return hashlib.sha256(bucket.key.encode()).hexdigest()[:32]


def _asked(request: WindowRequest) -> dict[str, object]:
    return {
        "ticket": request.ticket,
        "count": request.count,
        "buckets": [
            {"key": digest(bucket), "limit": bucket.rule.limit, "seconds": bucket.rule.seconds}
            for bucket in request.buckets
        ],
    }


def _admission(request: WindowRequest, rows: list[tuple[Any, ...]]) -> Admission:
    return Admission.read(
        request.ticket,
        admitted=all(row[0] for row in rows),
        readings=[
            Reading(bucket.rule, remaining, reset)
            for bucket, (_, remaining, reset) in zip(request.buckets, rows, strict=True)
        ],
    )
