"""What an operator sees and does: the mail queue and single accounts. Never a code, never a hash."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from typing import LiteralString
    from uuid import UUID

    from actors.domain.code import CodeId
    from service.adapters.postgres import Postgres
    from service.adapters.postgres_codes import CodePolicy

MAILS: Final = """
SELECT m.id, m.state, m.kind, m.attempts, m.created_at, m.due_at, m.accepted_at, m.reason, u.email, m.locale
FROM mails m JOIN users u ON u.id = m.user_id
WHERE (%(id)s::uuid IS NULL OR m.id = %(id)s) AND (%(state)s::text IS NULL OR m.state = %(state)s)
  AND (%(since)s::timestamptz IS NULL OR m.created_at >= %(since)s)
ORDER BY m.created_at DESC, m.id LIMIT %(limit)s
"""

# Only what somebody may still wait for: the newest code of a pending account that has not been guessed at too often.
# A code with too little life left is replaced when the mail is claimed.
# Race: the account is activated or registered anew meanwhile. The lock sees its newest version, so it stays as it is.
REPLAY: Final = """
WITH wanted AS (
    SELECT m.id, m.user_id FROM users u JOIN mails m ON m.user_id = u.id AND m.code_id = u.code_id
    WHERE m.id = ANY(%(ids)s) AND m.kind = 'code' AND m.state IN ('dead', 'accepted') AND u.activated_at IS NULL
      AND u.code_attempts < %(attempts)s
    ORDER BY u.id FOR UPDATE
), account AS (
    UPDATE users u SET code_mail = 'owed', code_accepted_at = NULL
    FROM wanted WHERE u.id = wanted.user_id AND NOT %(dry_run)s
), mail AS (
    UPDATE mails m SET state = 'queued', due_at = now(), created_at = now(), accepted_at = NULL, attempts = 0,
        reason = NULL
    FROM wanted WHERE m.id = wanted.id AND NOT %(dry_run)s
)
SELECT id FROM wanted
"""

SHOW: Final = """
SELECT u.id, u.email, u.locale, u.created_at, u.registered_at, u.activated_at, u.code_mail, u.code_expires_at,
       u.code_attempts, cardinality(u.codes_issued), u.code_expires_at > now()
FROM users u WHERE u.email_key = %(key)s
"""
ACTIVATE: Final = """
WITH done AS (
    UPDATE users SET activated_at = now(), activated_by = %(by)s
    WHERE email_key = %(key)s AND activated_at IS NULL RETURNING id
), counted AS (
    INSERT INTO business_counts AS b (day, worker, activations)
    SELECT (now() AT TIME ZONE 'UTC')::date, 'operator', count(*) FROM done HAVING count(*) > 0
    ON CONFLICT (day, worker) DO UPDATE SET activations = b.activations + EXCLUDED.activations
)
SELECT id FROM done UNION SELECT id FROM users WHERE email_key = %(key)s AND activated_by = %(by)s
"""
# As postgres_codes.ISSUE, without its limits.
RESEND: Final = """
WITH done AS (
    UPDATE users SET
        superseded = with_superseded(superseded, CASE WHEN old_code_id IS NOT NULL THEN code_id END),
        old_code_id = coalesce(old_code_id, code_id),
        old_code_expires_at = coalesce(old_code_expires_at, code_expires_at),
        old_code_attempts = coalesce(old_code_attempts, code_attempts),
        code_id = %(code)s, code_expires_at = now() + make_interval(secs => %(max_age)s), code_attempts = 0,
        code_mail = 'owed', code_accepted_at = NULL
    WHERE email_key = %(key)s AND activated_at IS NULL AND code_id <> %(code)s RETURNING id, locale
), withdrawn AS (
    UPDATE mails m SET state = 'dead', reason = 'superseded' FROM done WHERE m.user_id = done.id AND m.state = 'queued'
), owed AS (
    INSERT INTO mails (id, user_id, code_id, locale) SELECT %(mail)s, id, %(code)s, locale FROM done
), counted AS (
    INSERT INTO business_counts AS b (day, worker, resends)
    SELECT (now() AT TIME ZONE 'UTC')::date, 'operator', count(*) FROM done HAVING count(*) > 0
    ON CONFLICT (day, worker) DO UPDATE SET resends = b.resends + EXCLUDED.resends
)
SELECT id FROM done UNION SELECT id FROM users WHERE email_key = %(key)s AND code_id = %(code)s
"""
DELETE: Final = """
WITH shared AS (DELETE FROM shared_addresses WHERE email_key = %(key)s)
DELETE FROM users WHERE email_key = %(key)s OR shadow_of = %(key)s RETURNING id
"""


@dataclass(frozen=True, slots=True)
class MailEntry:
    """One mail as an operator sees it."""

    id: UUID
    state: str
    kind: str
    attempts: int
    created_at: datetime
    due_at: datetime
    accepted_at: datetime | None
    reason: str | None
    to: str = field(repr=False)
    locale: str


@dataclass(frozen=True, slots=True)
class UserEntry:
    """One account as an operator sees it."""

    id: UUID
    email: str = field(repr=False)
    locale: str
    created_at: datetime
    registered_at: datetime
    activated_at: datetime | None
    code_mail: str
    code_expires_at: datetime
    code_attempts: int
    codes_of_the_day: int
    code_alive: bool


class PostgresDesk:
    """The operator's hand on mails and accounts."""

    def __init__(self, postgres: Postgres, policy: CodePolicy) -> None:
        self._postgres = postgres
        self._policy = policy

    async def mails(
        self, *, mail_id: UUID | None = None, state: str | None = None, since: datetime | None = None, limit: int = 100
    ) -> list[MailEntry]:
        """Return the newest mails that match, newest first."""
        wanted = {"id": mail_id, "state": state, "since": since, "limit": limit}
        return [MailEntry(*row) for row in await self._postgres.run(MAILS, wanted, reading=True)]

    async def replay(self, mail_ids: Sequence[UUID], *, dry_run: bool) -> list[UUID]:
        """Queue again those of the mails that somebody may still wait for, and return which they are."""
        wanted = {"ids": list(mail_ids), "attempts": self._policy.attempts, "dry_run": dry_run}
        return [mail_id for (mail_id,) in await self._postgres.run(REPLAY, wanted)]

    async def show(self, email_key: str) -> UserEntry | None:
        """Return the account of an address."""
        rows = await self._postgres.run(SHOW, {"key": email_key}, reading=True)
        return UserEntry(*rows[0]) if rows else None

    async def activate(self, email_key: str) -> bool:
        """Activate an account without a code; False when there is none that is pending."""
        return await self._done(ACTIVATE, {"key": email_key, "by": uuid4()})

    async def resend(self, email_key: str, code_id: CodeId, mail_id: UUID) -> bool:
        """Issue a new code beside all limits; False when there is no pending account."""
        parameters = {"key": email_key, "code": str(code_id), "mail": mail_id, "max_age": self._policy.max_age}
        return await self._done(RESEND, parameters)

    async def delete(self, email_key: str) -> bool:
        """Delete an account with its mails and keys; False when there is none."""
        return await self._done(DELETE, {"key": email_key})

    async def _done(self, sql: LiteralString, parameters: dict[str, object]) -> bool:
        return bool(await self._postgres.run(sql, parameters))
