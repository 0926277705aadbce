"""The store of accounts, twice: in memory and in Postgres. A test that takes `store` runs over both."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self
from uuid import UUID, uuid4

import pytest

from actors.domain.code import Keyring
from actors.domain.email_address import EmailAddress
from actors.ports import NewAccount, NewCode, Redemption
from service.adapters.postgres import Postgres
from service.adapters.postgres_accounts import PostgresAccounts
from service.adapters.postgres_codes import PostgresCodes
from service.adapters.postgres_idempotency import PostgresIdempotencyKeys
from service.adapters.postgres_outbox import PostgresOutbox
from tests.fakes.accounts import DEFAULTS, FakeAccounts
from tests.fakes.clock import FakeClock
from tests.fakes.idempotency import FakeIdempotencyKeys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from actors.domain.code import CodeId
    from actors.domain.user import Account
    from actors.ports import Accounts, Codes, IdempotencyClaim, IdempotencyKeys

KEYRING: Final = Keyring({"k1": bytes(32)})
RIGHT: Final = b"$2b$12$right"

SHIFT_USERS: Final = """
UPDATE users SET
    created_at = created_at - make_interval(secs => %(s)s),
    registered_at = registered_at - make_interval(secs => %(s)s),
    activated_at = activated_at - make_interval(secs => %(s)s),
    code_expires_at = code_expires_at - make_interval(secs => %(s)s),
    code_accepted_at = code_accepted_at - make_interval(secs => %(s)s),
    old_code_expires_at = old_code_expires_at - make_interval(secs => %(s)s),
    codes_issued = ARRAY(SELECT t - make_interval(secs => %(s)s) FROM unnest(codes_issued) AS t ORDER BY t)
"""
SHIFT_MAILS: Final = """
UPDATE mails SET due_at = due_at - make_interval(secs => %(s)s), created_at = created_at - make_interval(secs => %(s)s),
    accepted_at = accepted_at - make_interval(secs => %(s)s)
"""
SHIFT_KEYS: Final = """
UPDATE idempotency_keys SET claimed_until = claimed_until - make_interval(secs => %(s)s),
    expires_at = expires_at - make_interval(secs => %(s)s), created_at = created_at - make_interval(secs => %(s)s)
"""
TAKE: Final = "UPDATE mails SET due_at = now() WHERE id = %(id)s AND state IN ('queued', 'sending')"


class Store(Protocol):
    """The three ports over one store, with its clock and the mail side in the test's hands."""

    @property
    def accounts(self) -> Accounts:
        """The accounts."""
        ...

    @property
    def codes(self) -> Codes:
        """Their codes."""
        ...

    @property
    def keys(self) -> IdempotencyKeys:
        """The keys of repeated requests."""
        ...

    async def wait(self, seconds: float) -> None:
        """Let time pass."""
        ...

    async def mail_taken(self, mail_id: UUID) -> None:
        """Let a worker take the mail in its hands."""
        ...

    async def mail_accepted(self, mail_id: UUID) -> None:
        """Let the mail server take the mail."""
        ...

    async def mail_dead(self, mail_id: UUID) -> None:
        """Let the mail server refuse the mail for good."""
        ...


class MemoryStore:
    """The fakes."""

    def __init__(self) -> None:
        self._clock = FakeClock()
        self.keys = FakeIdempotencyKeys(self._clock)
        self.accounts = self.codes = FakeAccounts(self._clock, self.keys)

    async def wait(self, seconds: float) -> None:
        """Move the clock."""
        self._clock.advance(seconds)

    async def mail_taken(self, mail_id: UUID) -> None:
        """See Store."""
        self.accounts.mail_taken(mail_id)

    async def mail_accepted(self, mail_id: UUID) -> None:
        """See Store."""
        self.accounts.mail_accepted(mail_id)

    async def mail_dead(self, mail_id: UUID) -> None:
        """See Store."""
        self.accounts.mail_dead(mail_id)


class PostgresStore:
    """The adapters; time passes by moving what is written into the past."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._outbox = PostgresOutbox(postgres, DEFAULTS, "test")
        self.accounts = PostgresAccounts(postgres, DEFAULTS, "test")
        self.codes = PostgresCodes(postgres, DEFAULTS, "test")
        self.keys = PostgresIdempotencyKeys(postgres)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Self]:
        """Connect."""
        async with Postgres.open(url) as postgres:
            yield cls(postgres)

    async def wait(self, seconds: float) -> None:
        """Move every row into the past."""
        for statement in (SHIFT_USERS, SHIFT_MAILS, SHIFT_KEYS):
            await self._postgres.run(statement, {"s": seconds})

    async def mail_taken(self, mail_id: UUID) -> None:
        """See Store."""
        await self._outbox.claim([mail_id])

    async def mail_accepted(self, mail_id: UUID) -> None:
        """Claim the mail, from another worker if need be, and write its outcome."""
        await self._postgres.run(TAKE, {"id": mail_id})
        (mail,) = await self._outbox.claim([mail_id])
        assert await self._outbox.accepted(mail)

    async def mail_dead(self, mail_id: UUID) -> None:
        """Claim the mail, from another worker if need be, and bury it."""
        await self._postgres.run(TAKE, {"id": mail_id})
        (mail,) = await self._outbox.claim([mail_id])
        await self._outbox.dead(mail, "550")


@dataclass(frozen=True, slots=True)
class People:
    """Makes what the ports take."""

    email: str = "ada@example.com"

    def registering(
        self, *, hashed: bytes = RIGHT, mail_id: UUID | None = None, idempotency: IdempotencyClaim | None = None
    ) -> NewAccount:
        """Return a registration of the address, with fresh ids."""
        return NewAccount(
            id=uuid4(),
            registration=uuid4(),
            email=EmailAddress(self.email.title(), self.email),
            password_hash=hashed,
            locale="en",
            code_id=KEYRING.code_id(uuid4()),
            mail_id=mail_id or uuid4(),
            idempotency=idempotency,
        )

    @staticmethod
    def resending(account: Account, *, hashed: bytes = RIGHT) -> NewCode:
        """Return a wish for another code."""
        return NewCode(account.id, hashed, KEYRING.code_id(uuid4()), uuid4(), None)

    @staticmethod
    def trying(account: Account, hit: CodeId | None, *, hashed: bytes = RIGHT) -> Redemption:
        """Return a try with the account's live codes, of which `hit` was typed."""
        live = tuple(code.id for code in account.live_codes(DEFAULTS.attempts))
        return Redemption(account.id, hashed, live, hit, uuid4())


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[Postgres]:
    """Connect."""
    async with Postgres.open(database_url) as postgres:
        yield postgres


@pytest.fixture
def outbox(postgres: Postgres) -> PostgresOutbox:
    """Build the mail worker's side."""
    return PostgresOutbox(postgres, DEFAULTS, "test")


@pytest.fixture
def people() -> People:
    """Return somebody to register."""
    return People()


@pytest.fixture(params=["memory", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str | None:
    """Name the store's database; None is the one in memory."""
    return request.getfixturevalue("database_url") if request.param == "postgres" else None


@pytest.fixture
async def store(store_url: str | None) -> AsyncIterator[Store]:
    """Open one of the stores, empty."""
    if store_url is None:
        yield MemoryStore()
        return
    async with PostgresStore.open(store_url) as postgres:
        yield postgres
