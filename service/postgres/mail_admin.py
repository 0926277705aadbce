"""What an operator sees and does: the mail queue and single accounts. Never a code, never a hash."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from actors.domain.mail import MailKind, MailState
from actors.domain.user import LOOKS
from actors.ports import Issue, NewMail
from service.postgres.accounts import PostgresAccounts
from service.postgres.ids import uuid7

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from actors.domain.user import Account, CodeMail, CodePolicy
    from service.postgres.pool import Postgres

WORKER: Final = "operator"  # its name in the business counters

MAILS: Final = """
SELECT m.id, m.state, m.kind, m.tries, m.created_at, m.due_at, m.accepted_at, m.reason, a.email, a.locale
FROM vestibule.mails m JOIN vestibule.accounts a ON a.id = m.account_id
"""
ONE: Final = MAILS + "WHERE m.id = %(id)s"
NEWEST: Final = (
    MAILS
    + """
WHERE (%(state)s::text IS NULL OR m.state = %(state)s)
  AND (%(since)s::timestamptz IS NULL OR m.created_at >= %(since)s)
ORDER BY m.id DESC LIMIT %(limit)s
"""
)

OWNERS: Final = "SELECT DISTINCT account_id FROM vestibule.mails WHERE id = ANY(%(ids)s)"

ACTIVATE: Final = """
WITH done AS (
    UPDATE vestibule.accounts SET activated_at = now() WHERE email_key = %(key)s AND activated_at IS NULL RETURNING id
), counted AS (
    INSERT INTO vestibule.business_counts AS b (day, worker, activations)
    SELECT (now() AT TIME ZONE 'UTC')::date, 'operator', count(*) FROM done HAVING count(*) > 0
    ON CONFLICT (day, worker) DO UPDATE SET activations = b.activations + EXCLUDED.activations
)
SELECT id FROM done
"""
DELETE: Final = "DELETE FROM vestibule.accounts WHERE email_key = %(key)s RETURNING id"


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


class PostgresMailAdmin:
    """The mail queue and single accounts, in an operator's hands; `key_id` derives the codes of new mails."""

    def __init__(self, postgres: Postgres, policy: CodePolicy, key_id: str) -> None:
        self._postgres = postgres
        self._policy = policy
        self._key_id = key_id
        self._accounts = PostgresAccounts(postgres, policy, WORKER)

    async def mails(
        self, *, mail_id: UUID | None = None, state: str | None = None, since: datetime | None = None, limit: int = 100
    ) -> list[MailEntry]:
        """Return the one mail with this id, or else the newest mails that match, newest first."""
        if mail_id is not None:
            rows = await self._postgres.run(ONE, {"id": mail_id}, reading=True)
        else:
            rows = await self._postgres.run(NEWEST, {"state": state, "since": since, "limit": limit}, reading=True)
        return [MailEntry(*row) for row in rows]

    async def replay(self, mail_ids: Sequence[UUID], *, dry_run: bool) -> list[UUID]:
        """Owe again those of the mails that somebody may still wait for, under fresh codes; return which they are.

        These are the newest code mails of pending accounts, with guesses left. A fresh code takes the old one's place
        once its mail is accepted; it inherits the guesses and uses up no budget.
        """
        owners = await self._postgres.run(OWNERS, {"ids": list(mail_ids)}, reading=True)
        issues: dict[UUID, Issue] = {}
        for account in await self._accounts.find_by_id([account_id for (account_id,) in owners]):
            newest = account.newest_mail() if account is not None and not account.is_activated else None
            if account is not None and newest is not None and newest.id in mail_ids and self._is_replayed(newest):
                mail = NewMail(uuid7(), MailKind.CODE, self._key_id, guesses=newest.guesses, counted=False)
                issues[newest.id] = Issue(account.id, account.version, mail)
        if dry_run or not issues:
            return list(issues)
        issued = await self._accounts.issue(list(issues.values()))
        return [mail_id for mail_id, registered in zip(issues, issued, strict=True) if registered is not None]

    def _is_replayed(self, mail: CodeMail) -> bool:
        return mail.state in {MailState.DEAD, MailState.ACCEPTED} and mail.guesses < self._policy.attempts

    async def show(self, email_key: str) -> Account | None:
        """Return the account of an address."""
        [account] = await self._accounts.find([email_key])
        return account

    async def activate(self, email_key: str) -> bool:
        """Activate an account without a code; False when there is none that is pending."""
        return bool(await self._postgres.run(ACTIVATE, {"key": email_key}, repeatable=False))

    async def resend(self, email_key: str) -> bool:
        """Issue a new code beside all limits; False when there is no pending account."""
        for _ in range(LOOKS):
            account = await self.show(email_key)
            if account is None or account.activated_at is not None:
                return False
            mail = NewMail(uuid7(), MailKind.CODE, self._key_id)
            [issued] = await self._accounts.issue([Issue(account.id, account.version, mail)])
            if issued is not None:
                return True
        return False

    async def delete(self, email_key: str) -> bool:
        """Delete an account with its mails and bound keys; False when there is none."""
        return bool(await self._postgres.run(DELETE, {"key": email_key}, repeatable=False))
