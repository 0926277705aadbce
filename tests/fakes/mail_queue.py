"""A mail queue in memory, on the clock of the event loop, and a transport that does as the test says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any
from uuid import UUID, uuid4

import anyio

from actors.domain.mail import OWED, ClaimedMail, MailState, Outcome, Result
from actors.kit.mailbox import MachineError
from actors.ports import NewMail
from tests.fakes.mails import claimed

LEASE_SECONDS = 15.0
MAX_AGE_SECONDS = 900.0


@dataclass(slots=True)
class Row:
    """One mail of the queue, as it was claimed last."""

    mail: ClaimedMail
    due_at: float
    expires_at: float
    state: MailState = MailState.QUEUED
    reason: str | None = None
    needed: bool = True


@dataclass(slots=True)
class MemoryMailQueue:
    """Behaves as the queue in Postgres does; a call takes `latency`, and `failures` are raised first, one a call.

    `calls` counts the calls by name, `claims` has the sizes of the claims.
    """

    latency: float = 0.0
    rows: list[Row] = field(default_factory=list)
    failures: list[MachineError] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    claims: list[int] = field(default_factory=list)

    def owe(self, recipient: str = "ada@example.com", *, age: float = 0.0, **values: Any) -> Row:  # noqa: ANN401 - any
        """Owe a mail with these values, whose code is `age` seconds old."""
        now = anyio.current_time()
        mail = claimed(**{"id": uuid4(), "account": uuid4(), "tries": 0, "recipient": recipient, **values})
        self.rows.append(Row(mail, now, now + MAX_AGE_SECONDS - age))
        return self.rows[-1]

    async def claim(self, limit: int) -> list[ClaimedMail]:
        """Claim up to `limit` due mails, the longest due first, one of an account."""
        await self._called("claim")
        now = anyio.current_time()
        due = sorted((row for row in self.rows if row.state in OWED and row.due_at <= now), key=attrgetter("due_at"))
        taken = list({row.mail.account: row for row in reversed(due[:limit])}.values())[::-1]
        for row in taken:
            row.state, row.due_at = MailState.SENDING, now + LEASE_SECONDS
            fence, tries = row.mail.fence + 1, row.mail.tries + 1
            row.mail = replace(row.mail, fence=fence, tries=tries, life_left=row.expires_at - now)
        self.claims.append(len(taken))
        return [row.mail for row in taken]

    async def reissue(self, mail: ClaimedMail, new: NewMail) -> ClaimedMail | None:
        """Replace a mail that is too old to leave by a new one."""
        await self._called("reissue")
        [row] = self._held([mail])
        if not row.needed:
            self.rows.remove(row)
            return None
        row.mail = replace(mail, id=new.id, key_id=new.key_id, life_left=MAX_AGE_SECONDS)
        return row.mail

    async def extend(self, mails: Sequence[ClaimedMail]) -> set[UUID]:
        """Renew the leases; return the ids that are still claimed by their fences."""
        await self._called("extend")
        for row in self._held(mails):
            row.due_at = anyio.current_time() + LEASE_SECONDS
        return {row.mail.id for row in self._held(mails)}

    async def accepted(self, mails: Sequence[ClaimedMail]) -> set[UUID]:
        """Write that the mail server accepted them; return those still claimed."""
        await self._called("accepted")
        assert len({mail.account for mail in mails}) == len(mails)
        held = self._held(mails)
        for row in held:
            row.state, row.reason = MailState.ACCEPTED, None
        return {row.mail.id for row in held}

    async def settle(self, outcomes: Sequence[tuple[ClaimedMail, Result]]) -> None:
        """Defer, mark as dead, or put back before all others; then the claim costs it no try."""
        await self._called("settle")
        for mail, result in outcomes:
            for row in self._held([mail]):
                row.state = MailState.DEAD if result.outcome is Outcome.DEAD else MailState.QUEUED
                if result.outcome is Outcome.PUT_BACK:
                    row.due_at, row.mail = 0.0, replace(row.mail, tries=row.mail.tries - 1)
                else:
                    row.reason, row.due_at = result.reason, anyio.current_time() + result.retry_seconds

    def states(self) -> set[MailState]:
        """Return the states that the mails are in."""
        return {row.state for row in self.rows}

    def _held(self, mails: Iterable[ClaimedMail]) -> list[Row]:
        claims = {(mail.id, mail.fence) for mail in mails}
        return [row for row in self.rows if row.state is MailState.SENDING and (row.mail.id, row.mail.fence) in claims]

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        await anyio.sleep(self.latency)
        if self.failures:
            raise self.failures.pop(0)


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
