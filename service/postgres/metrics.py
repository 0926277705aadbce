"""The lasting store of the metrics in Postgres, and what Postgres itself counts: business and mails."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from actors.domain.totals import WINDOW_SECONDS, WorkerReport
from actors.metrics_ports import Business, Delays, MailFigures, StoredReports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.postgres.pool import Postgres

# Without waiting for the disk: a crash of the server may take the last half second, and every worker writes again
# within a second. The version keeps a write that was late on its way from replacing a newer one.
WRITE: Final = """
WITH live AS (SELECT set_config('synchronous_commit', 'off', true)),
written AS (
    INSERT INTO vestibule.metrics_workers AS held (worker, version, totals, levels, leaving, seen_at)
    SELECT %(worker)s, %(version)s, %(totals)s::jsonb, %(levels)s::jsonb, %(leaving)s, clock_timestamp() FROM live
    ON CONFLICT (worker) DO UPDATE
    SET version = EXCLUDED.version, totals = EXCLUDED.totals, levels = EXCLUDED.levels, leaving = EXCLUDED.leaving,
        seen_at = EXCLUDED.seen_at
    WHERE held.version <= EXCLUDED.version
)
INSERT INTO vestibule.metrics_slices AS held (start, worker, route, version, histogram)
SELECT start, %(worker)s, route, %(version)s, histogram
FROM unnest(%(starts)s::bigint[], %(routes)s::text[], %(histograms)s::bytea[]) AS changed (start, route, histogram)
ON CONFLICT (start, worker, route) DO UPDATE SET version = EXCLUDED.version, histogram = EXCLUDED.histogram
WHERE held.version <= EXCLUDED.version
"""

READ_WORKERS: Final = """
SELECT worker, version, totals, levels, folded,
       worker <> '' AND NOT leaving AND seen_at > clock_timestamp() - interval '15 seconds' AS live
FROM vestibule.metrics_workers
WHERE totals <> folded OR worker = ANY(%(known)s)
"""

READ_SLICES: Final = "SELECT worker, start, route, histogram FROM vestibule.metrics_slices WHERE start >= %(since)s"

# Adds what each silent worker has counted beyond what was folded before, and remembers that, so a worker that was
# only asleep goes on from there. Rows that another one folds at the same time are skipped, and the row of the sum
# is locked first, so it is read in its newest version.
COMPACT: Final = """
WITH held AS (SELECT totals FROM vestibule.metrics_workers WHERE worker = '' FOR UPDATE),
gone AS (
    SELECT worker, totals, folded FROM vestibule.metrics_workers
    WHERE worker <> '' AND totals <> folded
      AND seen_at < clock_timestamp() - CASE WHEN leaving THEN interval '1 minute' ELSE interval '1 hour' END
    ORDER BY worker FOR UPDATE SKIP LOCKED
),
parts AS (
    SELECT name, number::numeric FROM held, jsonb_each_text(totals) AS e (name, number)
    UNION ALL
    SELECT name, number::numeric FROM gone, jsonb_each_text(totals) AS e (name, number)
    UNION ALL
    SELECT name, -number::numeric FROM gone, jsonb_each_text(folded) AS e (name, number)
),
numbers AS (SELECT name, sum(number) AS number FROM parts GROUP BY name),
marked AS (
    UPDATE vestibule.metrics_workers AS w SET folded = w.totals, levels = '{}' FROM gone WHERE w.worker = gone.worker
),
emptied AS (DELETE FROM vestibule.metrics_slices WHERE start < %(oldest)s),
dropped AS (
    DELETE FROM vestibule.metrics_workers WHERE worker <> '' AND totals = folded
      AND seen_at < clock_timestamp() - CASE WHEN leaving THEN interval '2 hours' ELSE interval '7 days' END
)
UPDATE vestibule.metrics_workers
SET totals = (SELECT jsonb_object_agg(name, number) FROM numbers), version = version + 1
WHERE worker = '' AND EXISTS (SELECT FROM gone)
"""

BUSINESS: Final = """
SELECT coalesce(sum(registrations), 0)::bigint, coalesce(sum(activations), 0)::bigint,
       coalesce(sum(resends), 0)::bigint, coalesce(sum(mails_accepted), 0)::bigint, coalesce(sum(mails_dead), 0)::bigint
FROM vestibule.business_counts
"""

# By now(), as an index finds nothing by a clock that may move within the statement.
MAIL: Final = """
WITH owed AS (
    SELECT count(*) FILTER (WHERE state = 'queued') AS queued, count(*) FILTER (WHERE state = 'sending') AS sending,
           extract(epoch FROM clock_timestamp() - min(owed_since) FILTER (WHERE state = 'queued')) AS oldest
    FROM vestibule.mails WHERE state IN ('queued', 'sending')
),
accepted AS (
    SELECT count(*) AS count, percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
        ORDER BY extract(epoch FROM accepted_at - owed_since)::float8 * 1000) AS delays
    FROM vestibule.mails WHERE accepted_at > now() - make_interval(secs => %(window)s)
),
dead_mails AS (
    SELECT coalesce(jsonb_object_agg(reason, count), '{}') AS dead
    FROM (SELECT coalesce(reason, 'unknown') AS reason, count(*) FROM vestibule.mails WHERE state = 'dead' GROUP BY 1
          ORDER BY 2 DESC LIMIT 20) AS reasons
)
SELECT queued, coalesce(oldest, 0)::float8, sending, dead, count, delays FROM owed, accepted, dead_mails
"""


class PostgresMetrics:
    """Keeps every worker's totals for ever, those of gone ones as one sum, and the window's slices."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def write(self, report: WorkerReport) -> None:
        """Enter the report unless a newer one is held."""
        changed = [(start, route, data) for start, each in report.slices.items() for route, data in each.items()]
        parameters: dict[str, object] = {
            "worker": report.worker,
            "version": report.version,
            "totals": json.dumps(report.totals),
            "levels": json.dumps(report.levels),
            "leaving": report.leaving,
            "starts": [start for start, _, _ in changed],
            "routes": [route for _, route, _ in changed],
            "histograms": [data for _, _, data in changed],
        }
        await self._postgres.run(WRITE, parameters)

    async def read(self, since: int, known: Sequence[str] = ()) -> StoredReports:
        """Return the reports of all workers; the one without a name sums up those that are gone."""
        slices: dict[str, dict[int, dict[str, bytes]]] = {}
        rows = await self._postgres.run(READ_WORKERS, {"known": list(known)}, reading=True)
        for worker, start, route, histogram in await self._postgres.run(READ_SLICES, {"since": since}, reading=True):
            slices.setdefault(worker, {}).setdefault(start, {})[route] = bytes(histogram)
        reports = [
            WorkerReport(worker, version, totals, levels, slices.pop(worker, {}))
            for worker, version, totals, levels, _folded, _live in rows
        ]
        reports += [WorkerReport(worker, 0, {}, slices=left) for worker, left in slices.items()]
        folded = {row[0]: row[4] for row in rows if row[4]}
        return StoredReports(reports, frozenset(row[0] for row in rows if row[5]), folded)

    async def compact(self, oldest: int) -> None:
        """Fold what is gone and drop what has left the window."""
        await self._postgres.run(COMPACT, {"oldest": oldest})

    async def business(self) -> Business:
        """Return the counters over all workers and days."""
        [totals] = await self._postgres.run(BUSINESS, reading=True)
        return Business(*totals)

    async def mail(self) -> MailFigures:
        """Return the queue and the window's delays."""
        [row] = await self._postgres.run(MAIL, {"window": WINDOW_SECONDS}, reading=True)
        queued, oldest, sending, dead, count, delays = row
        return MailFigures(queued, oldest, sending, dead, Delays(count, *(delays or ())))
