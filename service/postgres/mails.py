"""The owed mails in PostgreSQL: claims with leases and fences, and what became of each mail."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from actors.domain.mail import OWED_HOURS, ClaimedMail, MailKind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from actors.domain.mail import Result
    from actors.domain.user import CodePolicy
    from actors.ports import NewMail
    from service.postgres.pool import Postgres

LEASE_SECONDS: Final = 15  # a killed worker's mails wait so long; a living one renews in time
KILLS: Final = 3  # workers that died with a mail in hand, the last two with nothing else: the mail is why
KEPT_DAYS: Final = 30  # of settled mails, for the operator's questions
PURGED_ROWS: Final = 1000  # in one statement

# Race: batches that name the same mails, and guesses at their codes: all lock them in the order of their ids. What is
# read of a locked row stays as it is.
HELD: Final = """
WITH held AS MATERIALIZED (
    SELECT m.id, m.state FROM vestibule.mails m
    JOIN unnest(%(ids)s::uuid[], %(fences)s::integer[]) AS claim (id, fence) USING (id, fence)
    WHERE m.id = ANY(%(ids)s) ORDER BY m.id FOR NO KEY UPDATE OF m
)"""

# Race: many workers, one mail. SKIP LOCKED gives each due row to one of them and lets the others take other rows; a
# row under a lease is not due. A mail is needed while its account is pending under the mail's registration and its code
# has guesses left. At most one code mail of an account, the newest, is taken by one claim: the statement that accepts a
# batch could not supersede the older one beside it.
CLAIM: Final = """
WITH due AS MATERIALIZED (
    SELECT * FROM vestibule.mails WHERE state IN ('queued', 'sending') AND due_at <= now()
    ORDER BY due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY account_id, kind ORDER BY number DESC) AS place FROM due
), fates AS (
    SELECT r.id, r.due_at, a.email, a.locale, CASE
        WHEN r.kind = 'code' AND NOT (a.activated_at IS NULL AND r.registration = a.registration
                                      AND r.guesses < %(attempts)s) THEN 'superseded'
        WHEN r.owed_since + make_interval(hours => %(hours)s) <= now() THEN 'given up'
        WHEN r.deaths + (r.state = 'sending')::integer >= %(kills)s THEN 'killer'
        ELSE 'sending' END AS fate
    FROM ranked r JOIN vestibule.accounts a ON a.id = r.account_id WHERE r.kind = 'notice' OR r.place = 1
), claimed AS (
    UPDATE vestibule.mails m SET
        state = CASE WHEN f.fate IN ('sending', 'superseded') THEN f.fate ELSE 'dead' END,
        reason = CASE f.fate
            WHEN 'given up' THEN 'given up after ' || %(hours)s || ' h' || coalesce(': ' || m.reason, '')
            WHEN 'killer' THEN 'ended its worker ' || %(kills)s || ' times'
            ELSE m.reason END,
        tries = m.tries + 1, deaths = m.deaths + (m.state = 'sending')::integer, fence = m.fence + 1,
        due_at = now() + make_interval(secs => %(lease)s)
    FROM fates f WHERE m.id = f.id
    RETURNING m.*, f.email, f.locale, f.due_at AS was_due
), counted AS (
    INSERT INTO vestibule.business_counts AS b (day, worker, mails_dead)
    SELECT (now() AT TIME ZONE 'UTC')::date, %(worker)s, count(*) FROM claimed WHERE state = 'dead' HAVING count(*) > 0
    ON CONFLICT (day, worker) DO UPDATE SET mails_dead = b.mails_dead + EXCLUDED.mails_dead
)
SELECT id, fence, tries, kind, account_id, key_id, email, locale,
       extract(epoch FROM expires_at - now())::double precision, created_at, deaths > 0, traceparent
FROM claimed WHERE state = 'sending' ORDER BY was_due, number
"""

# Attack: a mail server that is down must not give guesses away: the fresh code inherits the guesses of the old one,
# read by the UPDATE under the account's lock; a plain read would lose those that were counted meanwhile.
REISSUE: Final = """
WITH locked AS MATERIALIZED (
    SELECT id, registration, activated_at FROM vestibule.accounts WHERE id = %(account)s FOR NO KEY UPDATE
), old AS (
    UPDATE vestibule.mails m SET state = 'superseded' FROM locked l
    WHERE m.id = %(id)s AND m.fence = %(fence)s AND m.state = 'sending' AND m.account_id = l.id
    RETURNING m.account_id, m.registration, m.tries, m.deaths, m.owed_since, m.guesses, m.traceparent,
        l.activated_at IS NULL AND m.registration = l.registration AND m.guesses < %(attempts)s AS needed
), account AS (
    UPDATE vestibule.accounts a SET version = a.version + 1 FROM old WHERE a.id = old.account_id AND old.needed
    RETURNING a.version
), new AS (
    INSERT INTO vestibule.mails (id, account_id, registration, number, kind, state, due_at, tries, deaths, fence,
                                 owed_since, expires_at, guesses, counted, key_id, traceparent)
    SELECT %(new)s, old.account_id, old.registration, account.version, 'code', 'sending',
           now() + make_interval(secs => %(lease)s), old.tries, old.deaths, 1, old.owed_since,
           now() + make_interval(secs => %(max_age)s), old.guesses, false, %(key)s, old.traceparent
    FROM old, account
    RETURNING fence
)
SELECT fence FROM new UNION ALL SELECT fence FROM vestibule.mails WHERE id = %(new)s AND state = 'sending'
"""

EXTEND: Final = (
    HELD
    + """
UPDATE vestibule.mails m SET due_at = now() + make_interval(secs => %(lease)s)
FROM held WHERE m.id = held.id AND m.id = ANY(%(ids)s) AND held.state = 'sending'
RETURNING m.id
"""
)

# Race: acceptance against a resend, a take-over and a redeem. An account that has had an older mail is locked before
# any mail, in the order of the keys. Of two mails of one account that are accepted at once by two workers the older one
# ends superseded, whichever is written first: each statement re-checks the rows it waited for.
ACCEPTED: Final = """
WITH locked AS MATERIALIZED (
    SELECT id FROM vestibule.accounts WHERE id = ANY(ARRAY(
        SELECT account_id FROM vestibule.mails WHERE id = ANY(%(ids)s) AND kind = 'code' AND number > 1
    )) ORDER BY email_key FOR NO KEY UPDATE
), held AS MATERIALIZED (
    SELECT m.id, m.state FROM vestibule.mails m
    JOIN unnest(%(ids)s::uuid[], %(fences)s::integer[]) AS claim (id, fence) USING (id, fence)
    WHERE m.id = ANY(%(ids)s) AND (SELECT count(*) FROM locked) >= 0
    ORDER BY m.id FOR NO KEY UPDATE OF m
), accepted AS (
    UPDATE vestibule.mails m SET
        state = 'accepted', accepted_at = now(), reason = NULL, deaths = 0,
        expires_at = least(m.expires_at, now() + make_interval(secs => %(ttl)s))
    FROM held WHERE m.id = held.id AND m.id = ANY(%(ids)s) AND held.state = 'sending'
    RETURNING m.account_id, m.number, m.kind
), superseded AS (
    UPDATE vestibule.mails o SET state = 'superseded' FROM accepted a
    WHERE o.account_id = a.account_id AND o.number < a.number AND a.number > 1 AND a.kind = 'code' AND o.kind = 'code'
      AND o.state IN ('queued', 'sending', 'accepted', 'delivered')
), counted AS (
    INSERT INTO vestibule.business_counts AS b (day, worker, mails_accepted)
    SELECT (now() AT TIME ZONE 'UTC')::date, %(worker)s, count(*) FROM accepted HAVING count(*) > 0
    ON CONFLICT (day, worker) DO UPDATE SET mails_accepted = b.mails_accepted + EXCLUDED.mails_accepted
)
SELECT id FROM held WHERE state IN ('sending', 'accepted', 'delivered')
"""

SETTLE: Final = (
    HELD  # noqa: S608 - both are constants
    + """, settled AS (
    UPDATE vestibule.mails m SET
        state = CASE o.outcome WHEN 'dead' THEN 'dead' ELSE 'queued' END,
        reason = CASE o.outcome WHEN 'put back' THEN m.reason ELSE o.reason END,
        due_at = CASE o.outcome WHEN 'put back' THEN m.created_at ELSE now() + make_interval(secs => o.pause) END,
        tries = m.tries - (o.outcome = 'put back')::integer,
        deaths = CASE o.outcome WHEN 'put back' THEN m.deaths ELSE 0 END
    FROM held JOIN unnest(%(ids)s::uuid[], %(outcomes)s::text[], %(reasons)s::text[], %(pauses)s::double precision[])
        AS o (id, outcome, reason, pause) USING (id)
    WHERE m.id = held.id AND m.id = ANY(%(ids)s) AND held.state = 'sending'
    RETURNING m.state
)
INSERT INTO vestibule.business_counts AS b (day, worker, mails_dead)
SELECT (now() AT TIME ZONE 'UTC')::date, %(worker)s, count(*) FROM settled WHERE state = 'dead' HAVING count(*) > 0
ON CONFLICT (day, worker) DO UPDATE SET mails_dead = b.mails_dead + EXCLUDED.mails_dead
"""
)

# Ids are UUIDv7: those of a month ago are the low end of the primary key. The database's clock decides, whatever the
# clock that made an id said. A statement takes some milliseconds, and no other one waits for it.
PURGE_MAILS: Final = """
DELETE FROM vestibule.mails WHERE id = ANY(ARRAY(
    SELECT id FROM vestibule.mails
    WHERE id < %(before)s AND created_at < now() - make_interval(days => %(days)s)
        AND state NOT IN ('queued', 'sending')
    ORDER BY id LIMIT %(rows)s FOR UPDATE SKIP LOCKED
)) RETURNING 1
"""
PURGE_ANSWERS: Final = """
DELETE FROM vestibule.answers WHERE digest = ANY(ARRAY(
    SELECT digest FROM vestibule.answers WHERE expires_at <= now()
    ORDER BY expires_at LIMIT %(rows)s FOR UPDATE SKIP LOCKED
)) RETURNING 1
"""


class PostgresMailQueue:
    """The MailQueue port; `worker` names this process in the business counters."""

    def __init__(self, postgres: Postgres, policy: CodePolicy, worker: str) -> None:
        self._postgres = postgres
        self._policy = policy
        self._worker = worker

    async def claim(self, limit: int) -> list[ClaimedMail]:
        """Claim up to `limit` due mails, the longest due first; those that must not be sent are settled instead."""
        parameters = {
            "limit": limit,
            "attempts": self._policy.attempts,
            "hours": OWED_HOURS,
            "kills": KILLS,
            "lease": LEASE_SECONDS,
            "worker": self._worker,
        }
        rows = await self._postgres.run(CLAIM, parameters)
        return [ClaimedMail(mail, fence, tries, MailKind(kind), *facts) for mail, fence, tries, kind, *facts in rows]

    async def reissue(self, mail: ClaimedMail, new: NewMail) -> ClaimedMail | None:
        """Replace a mail that is too old to leave by a new one, which is claimed instead; None when nobody needs it."""
        parameters = {
            "account": mail.account,
            "id": mail.id,
            "fence": mail.fence,
            "new": new.id,
            "key": new.key_id,
            "attempts": self._policy.attempts,
            "max_age": self._policy.max_age_seconds,
            "lease": LEASE_SECONDS,
        }
        life_left = float(self._policy.max_age_seconds)
        for (fence,) in await self._postgres.run(REISSUE, parameters):
            return replace(mail, id=new.id, fence=fence, key_id=new.key_id, life_left=life_left)
        return None

    async def extend(self, mails: Sequence[ClaimedMail]) -> set[UUID]:
        """Renew the leases; return the ids that are still claimed by their fences."""
        rows = await self._postgres.run(EXTEND, {**_held(mails), "lease": LEASE_SECONDS})
        return {mail for (mail,) in rows}

    async def accepted(self, mails: Sequence[ClaimedMail]) -> set[UUID]:
        """Write that the mail server accepted them, so their codes' minutes start now; return those still claimed."""
        parameters = {**_held(mails), "ttl": self._policy.ttl_seconds, "worker": self._worker}
        return {mail for (mail,) in await self._postgres.run(ACCEPTED, parameters)}

    async def settle(self, outcomes: Sequence[tuple[ClaimedMail, Result]]) -> None:
        """Write what became of mails that were not accepted: deferred, dead or put back, with the reasons."""
        results = [result for _, result in outcomes]
        parameters = {
            **_held([mail for mail, _ in outcomes]),
            "outcomes": [result.outcome.value for result in results],
            "reasons": [result.reason for result in results],
            "pauses": [result.retry_seconds for result in results],
            "worker": self._worker,
        }
        await self._postgres.run(SETTLE, parameters)


async def purge(postgres: Postgres, before: UUID) -> None:
    """Delete what has expired, some rows at a time: bound keys, and settled mails of a month ago.

    `before` is the least id of a mail that is younger, so that no younger one is read.
    """
    parameters = {"before": before, "days": KEPT_DAYS, "rows": PURGED_ROWS}
    for sql in (PURGE_ANSWERS, PURGE_MAILS):
        while len(await postgres.run(sql, parameters)) == PURGED_ROWS:
            pass


def _held(mails: Sequence[ClaimedMail]) -> dict[str, object]:
    return {"ids": [mail.id for mail in mails], "fences": [mail.fence for mail in mails]}
