"""Sliding windows in Postgres, for as long as Redis is away: exact over all workers, on the database's clock."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from actors.domain.rate_limit import Admission, Reading, Use

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from actors.domain.rate_limit import Bucket
    from actors.ports import Admit
    from service.postgres.pool import Postgres, Step

CLEAN_BATCH = 1000  # rows in one statement: a few milliseconds, in which nobody waits for a lock of ours
PAGE = 500  # uses at a time for another store: a script of a millisecond or so, in which Redis serves nobody else

# Race: workers and machines at a window with one use left. The buckets' locks come first, in one order, so that no two
# wait for each other, and are kept to the end of the transaction. Each decision is a statement of its own behind them,
# which sees what was committed before it began (READ COMMITTED); its clock is read behind the locks too.
LOCK: Final = """
SELECT pg_advisory_xact_lock(22101, lock) FROM (
    SELECT DISTINCT hashtext(bucket) AS lock FROM unnest(%(buckets)s::text[]) AS b (bucket) ORDER BY lock
) AS in_order
"""
# A ticket that is there already is admitted again, so that a repeat counts once. Of the newest uses, as many as the
# limit, the oldest is the one whose end makes room.
DECIDE: Final = """
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
asked AS (
    SELECT * FROM unnest(%(buckets)s::text[], %(limits)s::integer[], %(seconds)s::double precision[])
        WITH ORDINALITY AS a (bucket, most, seconds, place)
), verdict AS MATERIALIZED (
    SELECT NOT EXISTS (
        SELECT FROM asked a, clock c WHERE a.most <= (
            SELECT count(*) FROM vestibule.rate_limits u WHERE u.bucket = a.bucket AND u.expires_at >= c.now
        ) AND NOT EXISTS (SELECT FROM vestibule.rate_limits u WHERE u.bucket = a.bucket AND u.ticket = %(ticket)s)
    ) AS admitted
), counted AS (
    INSERT INTO vestibule.rate_limits (bucket, ticket, expires_at)
    SELECT a.bucket, %(ticket)s, c.now + make_interval(secs => a.seconds) FROM asked a, clock c, verdict v
    WHERE v.admitted AND %(count)s
    ON CONFLICT DO NOTHING
    RETURNING bucket, expires_at
), uses AS (
    SELECT bucket, expires_at FROM vestibule.rate_limits u, clock c
    WHERE u.bucket = ANY(%(buckets)s) AND u.expires_at >= c.now
    UNION ALL SELECT bucket, expires_at FROM counted
)
SELECT v.admitted, a.most - newest.used,
       coalesce(extract(epoch FROM newest.first_end - c.now)::double precision + 0.000001, 0)
FROM asked a, clock c, verdict v, LATERAL (
    SELECT count(*)::integer AS used, min(live.expires_at) AS first_end
    FROM (SELECT expires_at FROM uses WHERE bucket = a.bucket ORDER BY expires_at DESC LIMIT a.most) AS live
) AS newest
ORDER BY a.place
"""
GIVE_BACK: Final = """
DELETE FROM vestibule.rate_limits u USING unnest(%(buckets)s::text[], %(tickets)s::text[]) AS g (bucket, ticket)
WHERE u.bucket = g.bucket AND u.ticket = g.ticket
"""
# In pages, so that no outage is so long that one statement or one script takes too long.
USES: Final = """
SELECT bucket, ticket, extract(epoch FROM expires_at - clock_timestamp())::float8
FROM vestibule.rate_limits
WHERE (bucket, ticket) > (%(bucket)s, %(ticket)s) AND expires_at >= clock_timestamp()
ORDER BY bucket, ticket LIMIT %(rows)s
"""
# Race: several cleaners, and uses that are given back meanwhile. Rows in someone's hands are passed over.
CLEAN: Final = """
DELETE FROM vestibule.rate_limits u USING (
    SELECT bucket, ticket FROM vestibule.rate_limits WHERE expires_at < clock_timestamp()
    ORDER BY expires_at LIMIT %(rows)s FOR UPDATE SKIP LOCKED
) AS dead
WHERE u.bucket = dead.bucket AND u.ticket = dead.ticket
RETURNING 1
"""


class PostgresRateLimits:
    """The RateLimits port on Postgres.

    Its transactions count as `reading`: a lost answer is as good as none, since a repeat does no harm, and what was
    counted for nobody its window heals.
    """

    def __init__(self, postgres: Postgres) -> None:
        self._run = partial(postgres.run, reading=True)
        self._run_steps = partial(postgres.run_steps, reading=True)

    async def decide(self, asked: Sequence[Admit]) -> list[Admission]:
        """Decide each request atomically, in order, in one transaction for all."""
        counted = [bucket.key for request in asked if request.count for bucket in request.buckets]
        steps: list[Step] = [(LOCK, {"buckets": counted}), *((DECIDE, _asked(request)) for request in asked)]
        _, *answers = await self._run_steps(steps)
        return [_admission(request, rows) for request, rows in zip(asked, answers, strict=True)]

    async def give_back(self, given: Sequence[tuple[tuple[Bucket, ...], str]]) -> None:
        """Remove what each ticket counted in its buckets."""
        pairs = [(bucket.key, ticket) for buckets, ticket in given for bucket in buckets]
        await self._run(GIVE_BACK, {"buckets": [b for b, _ in pairs], "tickets": [t for _, t in pairs]})

    async def uses(self) -> AsyncIterator[list[Use]]:
        """Yield in pages everything that counts now."""
        page = [Use("", "", 0)]
        while page:
            last = {"bucket": page[-1].key, "ticket": page[-1].ticket, "rows": PAGE}
            page = [Use(*row) for row in await self._run(USES, last)]
            yield page

    async def clean(self) -> None:
        """Remove all uses that count no more."""
        while len(await self._run(CLEAN, {"rows": CLEAN_BATCH})) == CLEAN_BATCH:
            pass


def _asked(request: Admit) -> dict[str, object]:
    return {
        "ticket": request.ticket,
        "count": request.count,
        "buckets": [bucket.key for bucket in request.buckets],
        "limits": [bucket.rule.limit for bucket in request.buckets],
        "seconds": [bucket.rule.seconds for bucket in request.buckets],
    }


def _admission(request: Admit, rows: list[tuple[Any, ...]]) -> Admission:
    return Admission.read(
        request.ticket,
        admitted=all(row[0] for row in rows),
        readings=[
            Reading(bucket.rule, remaining, reset)
            for bucket, (_, remaining, reset) in zip(request.buckets, rows, strict=True)
        ],
    )
