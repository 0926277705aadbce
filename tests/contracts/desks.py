"""Stores whose mails can be given a fresh code, in memory and in Postgres: what the siege of an address needs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, Self

from tests.contracts.conftest import TAKE, PostgresStore
from tests.fakes.accounts import FakeAccounts
from tests.fakes.clock import FakeClock
from tests.fakes.idempotency import FakeIdempotencyKeys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from actors.domain.code import CodeId
    from actors.domain.mail import ClaimedMail
    from actors.ports import Accounts, Codes


class Desk(Protocol):
    """A store as the contracts have it, whose mails can be given a fresh code; False when a mail is not needed."""

    @property
    def accounts(self) -> Accounts:
        """The accounts."""
        ...

    @property
    def codes(self) -> Codes:
        """Their codes."""
        ...

    async def wait(self, seconds: float) -> None:
        """Let time pass."""
        ...

    async def accept(self, mail_id: UUID) -> bool:
        """Let the mail server take the mail."""
        ...

    async def bury(self, mail_id: UUID) -> None:
        """Let the mail server refuse the mail for good."""
        ...

    async def freshen(self, mail_id: UUID, code_id: CodeId) -> bool:
        """Let a worker find the mail's code too old and replace it."""
        ...


class FreshenedAccounts(FakeAccounts):
    """The fake with the one thing that only the outbox does to an account."""

    def freshen(self, mail_id: UUID, code_id: CodeId) -> bool:
        """Replace the newest code, which its mail still carries; what was tried on it is inherited."""
        for row in self._rows.values():
            account, fresh = row.account, self._new(code_id)
            pending = account.activated_at is None and account.code.attempts < self._policy.attempts
            if account.code.id == self.mails[mail_id] and pending:
                code = replace(fresh, attempts=account.code.attempts)
                row.account = replace(account, code=code, old_code=account.code)
                self.mails[mail_id] = code_id
                return True
        return False


class MemoryDesk:
    """The fakes."""

    def __init__(self) -> None:
        self._clock = FakeClock()
        self.accounts = self.codes = self._fake = FreshenedAccounts(self._clock, FakeIdempotencyKeys(self._clock))

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Self]:
        """Begin with nothing."""
        yield cls()

    async def wait(self, seconds: float) -> None:
        """Move the clock."""
        self._clock.advance(seconds)

    async def accept(self, mail_id: UUID) -> bool:
        """See Desk."""
        self._fake.mail_accepted(mail_id)
        return True

    async def bury(self, mail_id: UUID) -> None:
        """See Desk."""
        self._fake.mail_dead(mail_id)

    async def freshen(self, mail_id: UUID, code_id: CodeId) -> bool:
        """See Desk."""
        return self._fake.freshen(mail_id, code_id)


class PostgresDesk(PostgresStore):
    """The adapters."""

    async def accept(self, mail_id: UUID) -> bool:
        """See Desk."""
        claimed = await self._claimed(mail_id)
        return claimed is not None and await self._outbox.accepted(claimed)

    async def bury(self, mail_id: UUID) -> None:
        """See Desk."""
        claimed = await self._claimed(mail_id)
        if claimed is not None:
            await self._outbox.dead(claimed, "550")

    async def freshen(self, mail_id: UUID, code_id: CodeId) -> bool:
        """See Desk."""
        claimed = await self._claimed(mail_id)
        return claimed is not None and await self._outbox.freshen(claimed, code_id) is not None

    async def _claimed(self, mail_id: UUID) -> ClaimedMail | None:
        await self._postgres.run(TAKE, {"id": mail_id})
        claimed = await self._outbox.claim([mail_id])
        return claimed[0] if claimed else None
