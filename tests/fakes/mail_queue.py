"""A mail queue in memory, on the clock of the event loop, and a transport that does as the test says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import anyio

from actors.domain.mail import ClaimedMail, MailKind, MailState, Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from actors.domain.mail import Result
    from actors.kit.mailbox import MachineError
    from actors.ports import NewMail

LEASE_SECONDS = 15.0
MAX_AGE_SECONDS = 900.0
CREATED = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Row:
    """One mail of the queue."""

    id: UUID
    kind: MailKind
    account: UUID
    key_id: str
    recipient: str
    due_at: float
    expires_at: float
    state: MailState = MailState.QUEUED
    tries: int = 0
    fence: int = 0
    reason: str | None = None
    alone: bool = False
    needed: bool = True


@dataclass(slots=True)
class MemoryMailQueue:
    """Behaves as the queue in Postgres does; a call takes `latency`, and `failures` are raised first, one a call.

    `calls` counts the calls by name, `batches` has the sizes of the claims and of the outcomes that were written.
    """

    latency: float = 0.0
    rows: dict[UUID, Row] = field(default_factory=dict)
    failures: list[MachineError] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    batches: list[tuple[str, int]] = field(default_factory=list)

    def owe(  # noqa: PLR0913 - what a test may want to be different
        self,
        recipient: str = "ada@example.com",
        *,
        kind: MailKind = MailKind.CODE,
        account: UUID | None = None,
        key_id: str = "k1",
        age: float = 0.0,
        alone: bool = False,
    ) -> Row:
        """Owe a mail whose code is `age` seconds old."""
        now = anyio.current_time()
        row = Row(uuid4(), kind, account or uuid4(), key_id, recipient, now, now + MAX_AGE_SECONDS - age, alone=alone)
        self.rows[row.id] = row
        return row

    async def claim(self, limit: int) -> list[ClaimedMail]:
        """Claim up to `limit` due mails, the longest due first, one of an account."""
        await self._called("claim")
        now = anyio.current_time()
        due = sorted(
            (row for row in self.rows.values() if _owed(row) and row.due_at <= now), key=lambda row: row.due_at
        )
        mails = [_claim(row, now) for row in {row.account: row for row in reversed(due[:limit])}.values()]
        self.batches.append(("claim", len(mails)))
        return mails[::-1]

    async def reissue(self, mail: ClaimedMail, new: NewMail) -> ClaimedMail | None:
        """Replace a mail that is too old to leave by a new one."""
        await self._called("reissue")
        row = self.rows.pop(mail.id)
        if not row.needed:
            return None
        row.id, row.key_id, row.expires_at = new.id, new.key_id, anyio.current_time() + MAX_AGE_SECONDS
        self.rows[row.id] = row
        return replace(mail, id=new.id, key_id=new.key_id, life_left=MAX_AGE_SECONDS)

    async def extend(self, mails: Sequence[ClaimedMail]) -> set[UUID]:
        """Renew the leases; return the ids that are still claimed by their fences."""
        await self._called("extend", mails)
        held = [row for row in map(self._held, mails) if row is not None]
        for row in held:
            row.due_at = anyio.current_time() + LEASE_SECONDS
        return {row.id for row in held}

    async def accepted(self, mails: Sequence[ClaimedMail]) -> set[UUID]:
        """Write that the mail server accepted them; return those still claimed."""
        await self._called("accepted", mails)
        assert len({mail.account for mail in mails}) == len(mails)
        held = [row for row in map(self._held, mails) if row is not None]
        for row in held:
            row.state, row.reason = MailState.ACCEPTED, None
        return {row.id for row in held}

    async def settle(self, outcomes: Sequence[tuple[ClaimedMail, Result]]) -> None:
        """Defer, mark as dead, or put back before all others; then the claim costs it no try."""
        await self._called("settle", outcomes)
        for mail, result in outcomes:
            row = self._held(mail)
            if row is None:
                continue
            row.state = MailState.DEAD if result.outcome is Outcome.DEAD else MailState.QUEUED
            if result.outcome is Outcome.PUT_BACK:
                row.due_at, row.tries = 0.0, row.tries - 1
            else:
                row.reason, row.due_at = result.reason, anyio.current_time() + result.retry_seconds

    def states(self) -> set[MailState]:
        """Return the states that the mails are in."""
        return {row.state for row in self.rows.values()}

    def _held(self, mail: ClaimedMail) -> Row | None:
        row = self.rows.get(mail.id)
        return row if row and row.fence == mail.fence and row.state is MailState.SENDING else None

    async def _called(self, name: str, batch: Sequence[object] = ()) -> None:
        self.calls.append(name)
        if batch:
            self.batches.append((name, len(batch)))
        await anyio.sleep(self.latency)
        if self.failures:
            raise self.failures.pop(0)


def _owed(row: Row) -> bool:
    return row.state in {MailState.QUEUED, MailState.SENDING}


def _claim(row: Row, now: float) -> ClaimedMail:
    row.state, row.fence, row.due_at = MailState.SENDING, row.fence + 1, now + LEASE_SECONDS
    row.tries += 1
    return ClaimedMail(
        id=row.id,
        fence=row.fence,
        tries=row.tries,
        kind=row.kind,
        account=row.account,
        key_id=row.key_id,
        recipient=row.recipient,
        locale="en",
        life_left=row.expires_at - now,
        created_at=CREATED,
        alone=row.alone,
    )


@dataclass(slots=True)
class ScriptedTransport:
    """Notes what it accepted and at what times it was asked; a send takes `seconds`.

    `script` has what to do for the next sends, in their order; then `always`, if there is one, for every send.
    """

    script: list[Callable[[ClaimedMail], Awaitable[None]]] = field(default_factory=list)
    always: Callable[[ClaimedMail], Awaitable[None]] | None = None
    seconds: float = 0.0
    accepted: list[tuple[ClaimedMail, str | None]] = field(default_factory=list)
    tried: list[tuple[float, UUID]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    async def send(self, mail: ClaimedMail, code: str | None) -> None:
        """Accept the mail, unless the script says something else."""
        self.tried.append((anyio.current_time(), mail.id))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await anyio.sleep(self.seconds)
            if self.script:
                await self.script.pop(0)(mail)
            elif self.always is not None:
                await self.always(mail)
        finally:
            self.running -= 1
        self.accepted.append((mail, code))
