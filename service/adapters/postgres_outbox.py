"""The outbox in Postgres: claims with leases and fences, and what became of each mail."""

# ruff: noqa: S608 - statements are joined of constants of this file, no input among them
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from actors.domain.mail import OWED_HOURS
from service.adapters.postgres_rows import mail_from

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from actors.domain.code import CodeId
    from actors.domain.mail import ClaimedMail
    from service.adapters.postgres import Postgres
    from service.adapters.postgres_codes import CodePolicy

LEASE_SECONDS = 15  # a killed worker's mails wait so long; a living one renews in time
GIVEN_UP = f"given up after {OWED_HOURS} h"

# Race: many workers, one mail. SKIP LOCKED gives each due row to one of them and lets the others take other rows; a
# row under a lease is not due. A mail is needed while its account is pending under that very code, and owed for a day:
# so neither workers that were away nor a mail that kills them go on with it for ever.
# A shadow's notice goes to whoever holds the address; a silent mail shares the fate of the address' last real one.
CLAIMED: Final = """, claimed AS (
    UPDATE mails m
    SET state = 'sending', attempts = m.attempts + 1, fence = m.fence + 1,
        due_at = now() + make_interval(secs => %(lease)s)
    FROM due WHERE m.id = due.id
    RETURNING m.*
)
SELECT c.id, c.fence, c.attempts, c.kind, c.user_id, c.code_id,
       CASE WHEN u.shadow_of IS NULL THEN u.email
           ELSE coalesce((SELECT h.email FROM users h WHERE h.email_key = u.shadow_of), u.email) END,
       c.locale, CASE WHEN c.code_id IS NOT NULL THEN extract(epoch FROM u.code_expires_at - now())::float8 END,
       c.created_at, c.traceparent, CASE WHEN c.kind = 'silent' THEN coalesce((
           SELECT m.state = 'dead' FROM mails m JOIN users o ON o.id = m.user_id
           WHERE (o.email_key = u.shadow_of OR o.shadow_of = u.shadow_of) AND m.kind <> 'silent'
             AND m.state IN ('accepted', 'dead') AND m.reason IS DISTINCT FROM 'superseded'
           ORDER BY m.created_at DESC LIMIT 1
       ), false) ELSE false END,
       c.code_id IS NULL OR (u.activated_at IS NULL AND c.code_id = u.code_id AND u.code_attempts < %(attempts)s),
       now() < c.created_at + make_interval(hours => %(hours)s)
FROM claimed c JOIN users u ON u.id = c.user_id ORDER BY c.created_at
"""
CLAIM: Final = (
    """
WITH due AS (
    SELECT id FROM mails WHERE id = ANY(%(ids)s) AND state IN ('queued', 'sending') AND due_at <= now()
    ORDER BY due_at FOR UPDATE SKIP LOCKED
)"""
    + CLAIMED
)
CLAIM_DUE: Final = (
    """
WITH due AS (
    SELECT id FROM mails WHERE state IN ('queued', 'sending') AND due_at <= now()
    ORDER BY due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)"""
    + CLAIMED
)

# A mail that nobody needs any more is no dead mail of the metrics: it was withdrawn.
WITHDRAW: Final = """
UPDATE mails SET state = 'dead', reason = 'superseded'
FROM unnest(%(ids)s::uuid[], %(fences)s::bigint[]) AS held (id, fence)
WHERE mails.id = held.id AND mails.fence = held.fence AND state = 'sending'
"""

# Attack: a mail server that is down must not give guesses away: the fresh code inherits the attempts of the old one.
# The code before, while it lives, is the one that has arrived; the one that is replaced has not.
FRESHEN: Final = """
WITH account AS (
    UPDATE users u SET
        superseded = with_superseded(
            u.superseded, CASE WHEN now() < u.old_code_expires_at THEN u.code_id ELSE u.old_code_id END),
        old_code_id = CASE WHEN now() < u.old_code_expires_at THEN u.old_code_id ELSE u.code_id END,
        old_code_expires_at = CASE
            WHEN now() < u.old_code_expires_at THEN u.old_code_expires_at ELSE u.code_expires_at END,
        old_code_attempts = CASE WHEN now() < u.old_code_expires_at THEN u.old_code_attempts ELSE u.code_attempts END,
        code_id = %(code)s, code_expires_at = now() + make_interval(secs => %(max_age)s)
    FROM mails m
    WHERE m.id = %(id)s AND m.fence = %(fence)s AND m.state = 'sending'
      AND u.id = m.user_id AND u.code_id = m.code_id AND u.code_id <> %(code)s AND u.activated_at IS NULL
      AND u.code_attempts < %(attempts)s
    RETURNING m.id
), mail AS (
    UPDATE mails m SET code_id = %(code)s FROM account WHERE m.id = account.id
)
SELECT id FROM account
UNION ALL SELECT id FROM mails WHERE id = %(id)s AND fence = %(fence)s AND state = 'sending' AND code_id = %(code)s
"""

EXTEND: Final = """
UPDATE mails SET due_at = now() + make_interval(secs => %(lease)s)
WHERE id = %(id)s AND fence = %(fence)s AND state = 'sending' RETURNING 1
"""

# The users row is taken before the mails row, as everywhere, so that no two statements wait for each other.
ACCEPTED: Final = """
WITH account AS (
    UPDATE users u SET
        code_mail = CASE WHEN u.code_id = m.code_id THEN 'accepted' ELSE u.code_mail END,
        code_accepted_at = CASE WHEN u.code_id = m.code_id THEN now() ELSE u.code_accepted_at END,
        code_expires_at = CASE WHEN u.code_id = m.code_id
            THEN least(u.code_expires_at, now() + make_interval(secs => %(ttl)s)) ELSE u.code_expires_at END,
        superseded = CASE WHEN u.code_id = m.code_id
            THEN with_superseded(u.superseded, u.old_code_id) ELSE u.superseded END,
        old_code_id = CASE WHEN u.code_id = m.code_id THEN NULL ELSE u.old_code_id END,
        old_code_attempts = CASE WHEN u.code_id = m.code_id THEN NULL ELSE u.old_code_attempts END,
        old_code_expires_at = CASE WHEN u.code_id = m.code_id THEN NULL
            ELSE least(u.old_code_expires_at, now() + make_interval(secs => %(ttl)s)) END
    FROM mails m
    WHERE m.id = %(id)s AND m.fence = %(fence)s AND m.state = 'sending' AND u.id = m.user_id
      AND u.activated_at IS NULL AND m.code_id IN (u.code_id, u.old_code_id)
    RETURNING u.id
), mail AS (
    UPDATE mails SET state = 'accepted', accepted_at = now(), reason = NULL
    WHERE id = %(id)s AND fence = %(fence)s AND state = 'sending' AND (SELECT count(*) FROM account) >= 0
    RETURNING id, kind
), counted AS (
    INSERT INTO business_counts AS b (day, worker, mails_accepted)
    SELECT (now() AT TIME ZONE 'UTC')::date, %(worker)s, count(*) FROM mail WHERE kind <> 'silent' HAVING count(*) > 0
    ON CONFLICT (day, worker) DO UPDATE SET mails_accepted = b.mails_accepted + EXCLUDED.mails_accepted
)
SELECT id FROM mail UNION SELECT id FROM mails WHERE id = %(id)s AND fence = %(fence)s AND state = 'accepted'
"""

DEAD: Final = """
WITH account AS (
    UPDATE users u SET code_mail = 'dead' FROM mails m
    WHERE m.id = %(id)s AND m.fence = %(fence)s AND m.state = 'sending' AND u.id = m.user_id AND u.code_id = m.code_id
      AND u.activated_at IS NULL
    RETURNING u.id
), mail AS (
    UPDATE mails SET state = 'dead', reason = %(reason)s
    WHERE id = %(id)s AND fence = %(fence)s AND state = 'sending' AND (SELECT count(*) FROM account) >= 0
    RETURNING id, kind
), counted AS (
    INSERT INTO business_counts AS b (day, worker, mails_dead)
    SELECT (now() AT TIME ZONE 'UTC')::date, %(worker)s, count(*) FROM mail WHERE kind <> 'silent' HAVING count(*) > 0
    ON CONFLICT (day, worker) DO UPDATE SET mails_dead = b.mails_dead + EXCLUDED.mails_dead
)
SELECT id FROM mail
"""
DEFERRED: Final = """
UPDATE mails SET state = 'queued', due_at = now() + make_interval(secs => %(pause)s), reason = %(reason)s
WHERE id = %(id)s AND fence = %(fence)s AND state = 'sending'
  AND now() + make_interval(secs => %(pause)s) < created_at + make_interval(hours => %(hours)s)
RETURNING 1
"""
# A mail that another worker has its hands on is not waited for: it is due already, or done.
HASTEN: Final = """
UPDATE mails SET due_at = now() WHERE id IN (
    SELECT id FROM mails WHERE id = ANY(%(ids)s) AND state = 'queued' AND due_at > now() FOR UPDATE SKIP LOCKED
)
"""


class PostgresOutbox:
    """The Outbox port; `worker` names this process in the business counters."""

    def __init__(self, postgres: Postgres, policy: CodePolicy, worker: str) -> None:
        self._postgres = postgres
        self._policy = policy
        self._worker = worker

    async def claim(self, mail_ids: Sequence[UUID]) -> list[ClaimedMail]:
        """Claim those of the named mails that are due and in nobody's hands."""
        return await self._claimed(await self._postgres.run(CLAIM, {"ids": list(mail_ids), **self._claim()}))

    async def claim_due(self, limit: int) -> list[ClaimedMail]:
        """Claim whatever is due, the longest waiting first."""
        return await self._claimed(await self._postgres.run(CLAIM_DUE, {"limit": limit, **self._claim()}))

    async def freshen(self, mail: ClaimedMail, code_id: CodeId) -> ClaimedMail | None:
        """Replace a code that has too little life left; None when the mail need not be sent any more."""
        parameters = {
            **_of(mail),
            "code": str(code_id),
            "max_age": self._policy.max_age,
            "attempts": self._policy.attempts,
        }
        if not await self._postgres.run(FRESHEN, parameters):
            await self._withdraw([(mail.id, mail.fence)])
            return None
        return replace(mail, code_id=code_id, life_left=float(self._policy.max_age))

    async def extend(self, mail: ClaimedMail) -> bool:
        """Renew the lease; False when the claim is lost."""
        return bool(await self._postgres.run(EXTEND, {**_of(mail), "lease": LEASE_SECONDS}))

    async def accepted(self, mail: ClaimedMail) -> bool:
        """Write that the mail server took it: the code's minute starts now. False when the claim was lost."""
        parameters = {**_of(mail), "ttl": self._policy.ttl, "worker": self._worker}
        return bool(await self._postgres.run(ACCEPTED, parameters))

    async def deferred(self, mail: ClaimedMail, reason: str, seconds: float) -> None:
        """Queue it again for `seconds` from now, or bury it when nobody waits any more."""
        parameters = {**_of(mail), "reason": reason, "pause": seconds, "hours": OWED_HOURS}
        if not await self._postgres.run(DEFERRED, parameters):
            await self.dead(mail, f"{GIVEN_UP}: {reason}")

    async def hasten(self, mail_ids: Sequence[UUID]) -> None:
        """Make those of the named mails due that wait for their next attempt; what it counts stays counted."""
        await self._postgres.run(HASTEN, {"ids": list(mail_ids)})

    async def dead(self, mail: ClaimedMail, reason: str) -> None:
        """Bury it with its reason."""
        await self._postgres.run(DEAD, {**_of(mail), "reason": reason, "worker": self._worker})

    def _claim(self) -> dict[str, object]:
        return {"lease": LEASE_SECONDS, "attempts": self._policy.attempts, "hours": OWED_HOURS}

    async def _claimed(self, rows: Sequence[tuple[Any, ...]]) -> list[ClaimedMail]:
        """Let go of what nobody needs, bury what was owed for too long, and return the others."""
        unneeded = [(row[0], row[1]) for row in rows if not row[-2]]
        if unneeded:
            await self._withdraw(unneeded)
        for mail in [mail_from(row) for row in rows if row[-2] and not row[-1]]:
            await self.dead(mail, GIVEN_UP)
        return [mail_from(row) for row in rows if row[-2] and row[-1]]

    async def _withdraw(self, held: Sequence[tuple[UUID, int]]) -> None:
        ids, fences = [mail_id for mail_id, _ in held], [fence for _, fence in held]
        await self._postgres.run(WITHDRAW, {"ids": ids, "fences": fences})


def _of(mail: ClaimedMail) -> dict[str, object]:
    return {"id": mail.id, "fence": mail.fence}
