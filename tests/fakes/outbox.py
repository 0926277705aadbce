"""An outbox in memory, on the clock of the event loop, and a postman that does as the test says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import anyio

from actors.domain.mail import OWED_HOURS, ClaimedMail, MailKind, MailState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from actors.domain.code import CodeId
    from actors.domain.mail import Deferred

LEASE_SECONDS = 15.0
MADE = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Row:
    """One mail of the outbox."""

    id: UUID
    kind: MailKind
    account: UUID
    code_id: CodeId | None
    recipient: str
    locale: str
    owed_at: float
    due_at: float
    expires_at: float | None
    state: MailState = MailState.QUEUED
    attempts: int = 0
    fence: int = 0
    lease_until: float = 0.0
    reason: str | None = None
    needed: bool = True


@dataclass(slots=True)
class MemoryOutbox:
    """Behaves as the outbox in Postgres does; a call takes `latency`, and `failures` are raised first, one a call."""

    max_age_seconds: float = 900.0
    latency: float = 0.0
    rows: dict[UUID, Row] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)
    _ahead: float = 0.0

    def advance(self, seconds: float) -> None:
        """Let time pass for the mails alone."""
        self._ahead += seconds

    def _now(self) -> float:
        return anyio.current_time() + self._ahead

    def owe(
        self, code_id: CodeId | None = None, *, recipient: str = "ada@example.com", locale: str = "en", age: float = 0.0
    ) -> Row:
        """Owe a mail, since `age` seconds: with a code if one is named, else a notice."""
        now = self._now()
        row = Row(
            id=uuid4(),
            kind=MailKind.CODE if code_id else MailKind.NOTICE,
            account=uuid4(),
            code_id=code_id,
            recipient=recipient,
            locale=locale,
            owed_at=now - age,
            due_at=now,
            expires_at=now - age + self.max_age_seconds if code_id else None,
        )
        self.rows[row.id] = row
        return row

    async def claim(self, mail_ids: Sequence[UUID]) -> list[ClaimedMail]:
        """Claim those of the named mails that are due and in nobody's hands."""
        await self._reached()
        return self._taken([self.rows[mail_id] for mail_id in mail_ids if self._due(mail_id)])

    async def claim_due(self, limit: int) -> list[ClaimedMail]:
        """Claim whatever is due, the longest waiting first."""
        await self._reached()
        due = sorted((row for row in self.rows.values() if self._due(row.id)), key=lambda row: row.due_at)
        return self._taken(due[:limit])

    async def freshen(self, mail: ClaimedMail, code_id: CodeId) -> ClaimedMail | None:
        """Replace a code that has too little life left; None when the mail need not be sent any more."""
        await self._reached()
        row = self.rows[mail.id]
        if not self._held(mail) or not row.needed:
            self._withdraw(row, mail.fence)
            return None
        row.code_id, row.expires_at = code_id, self._now() + self.max_age_seconds
        return replace(mail, code_id=code_id, life_left=self.max_age_seconds)

    async def extend(self, mail: ClaimedMail) -> bool:
        """Renew the lease; False when the claim is lost."""
        await self._reached()
        if self._held(mail):
            self.rows[mail.id].lease_until = self._now() + LEASE_SECONDS
            return True
        return False

    async def accepted(self, mail: ClaimedMail) -> bool:
        """Write that the mail server took it. False when the claim was lost."""
        row = self.rows[mail.id]
        await self._settle(mail, MailState.ACCEPTED, None)
        return row.fence == mail.fence and row.state is MailState.ACCEPTED

    async def deferred(self, mail: ClaimedMail, reason: str, seconds: float) -> None:
        """Queue it again for `seconds` from now, or bury it when nobody waits any more."""
        late = self._now() + seconds - self.rows[mail.id].owed_at >= OWED_HOURS * 3600
        await self._settle(mail, MailState.DEAD if late else MailState.QUEUED, reason, seconds)

    async def hasten(self, mail_ids: Sequence[UUID]) -> None:
        """Make those of the named mails due that wait for their next attempt."""
        await self._reached()
        for row in filter(None, map(self.rows.get, mail_ids)):
            if row.state is MailState.QUEUED:
                row.due_at = min(row.due_at, self._now())

    async def dead(self, mail: ClaimedMail, reason: str) -> None:
        """Bury it with its reason."""
        await self._settle(mail, MailState.DEAD, reason)

    async def _settle(self, mail: ClaimedMail, state: MailState, reason: str | None, seconds: float = 0.0) -> None:
        await self._reached()
        if self._held(mail):
            row = self.rows[mail.id]
            row.state, row.reason, row.due_at = state, reason, self._now() + seconds

    def _held(self, mail: ClaimedMail) -> bool:
        row = self.rows[mail.id]
        return row.fence == mail.fence and row.state is MailState.SENDING

    def _withdraw(self, row: Row, fence: int) -> None:
        if row.fence == fence and row.state is MailState.SENDING:
            row.state, row.reason = MailState.DEAD, "superseded"

    def _taken(self, rows: list[Row]) -> list[ClaimedMail]:
        mails = [self._take(row) for row in rows]
        for row in rows:
            if not row.needed:
                self._withdraw(row, row.fence)
            elif self._now() - row.owed_at >= OWED_HOURS * 3600:
                row.state, row.reason = MailState.DEAD, "given up"
        return [mail for mail in mails if self.rows[mail.id].state is MailState.SENDING]

    def _due(self, mail_id: UUID) -> bool:
        row = self.rows.get(mail_id)
        now = self._now()
        if row is None:
            return False
        free = row.state is MailState.SENDING and row.lease_until <= now
        return free or (row.state is MailState.QUEUED and row.due_at <= now)

    def _take(self, row: Row) -> ClaimedMail:
        now = self._now()
        row.state, row.fence, row.lease_until = MailState.SENDING, row.fence + 1, now + LEASE_SECONDS
        row.attempts += 1
        return ClaimedMail(
            id=row.id,
            fence=row.fence,
            attempt=row.attempts,
            kind=row.kind,
            account=row.account,
            code_id=row.code_id,
            recipient=row.recipient,
            locale=row.locale,
            life_left=None if row.expires_at is None else row.expires_at - now,
            created_at=MADE,
        )

    async def _reached(self) -> None:
        await anyio.sleep(self.latency)
        if self.failures:
            raise self.failures.pop(0)


@dataclass(slots=True)
class ScriptedPostman:
    """Notes what it took, and does `script`'s next step for each mail first; without one it takes the mail.

    `away` is raised to whoever wants to reach it, and `looks` counts those.
    """

    script: list[Callable[[ClaimedMail], Awaitable[None]]] = field(default_factory=list)
    taken: list[tuple[ClaimedMail, str | None]] = field(default_factory=list)
    away: Deferred | None = None
    looks: int = 0

    async def reach(self) -> None:
        """Be there, or not."""
        await anyio.lowlevel.checkpoint()
        self.looks += 1
        if self.away is not None:
            raise self.away

    async def send(self, mail: ClaimedMail, code: str | None) -> None:
        """Take the mail, unless the script has something else in mind."""
        await anyio.lowlevel.checkpoint()
        if self.script:
            await self.script.pop(0)(mail)
        self.taken.append((mail, code))
