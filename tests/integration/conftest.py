"""Stores over a database of the test's own, on either loop."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import anyio
import pytest

from actors.domain.email_address import EmailAddress
from actors.domain.mail import MailKind, Outcome, Result
from actors.ports import Issue, KeyUse, NewMail, Redeem, Register
from service.mail.transport import open_transport
from service.postgres.accounts import PostgresAccounts
from service.postgres.mails import PostgresMailQueue
from service.postgres.pool import Postgres
from service.settings import Settings
from tests.fakes.accounts import POLICY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from actors.domain.mail import ClaimedMail
    from actors.domain.user import Account
    from service.mail.transport import MailTransport

HASH = b"$2b$04$" + b"x" * 53


class Stores:
    """The accounts and the mail queue of one worker, with short ways to write and read them."""

    def __init__(self, postgres: Postgres, worker: str = "w1") -> None:
        self.postgres = postgres
        self.accounts = PostgresAccounts(postgres, POLICY, worker)
        self.queue = PostgresMailQueue(postgres, POLICY, worker)

    async def account(self, email: str = "ada@example.com") -> Account:
        """Return the account, which must be there."""
        [account] = await self.accounts.find([email])
        assert account is not None
        return account

    async def registered(self, email: str = "ada@example.com", *, accepted: bool = False) -> Account:
        """Add an account; with `accepted` its mail has been sent."""
        [registered] = await self.accounts.add([new_account(email)])
        assert registered is not None
        if accepted:
            mails = await self.queue.claim(100)
            assert await self.queue.accepted(mails) == {mail.id for mail in mails}
        return await self.account(email)

    async def claimed(self) -> ClaimedMail:
        """Claim the one mail that is due."""
        [mail] = await self.queue.claim(10)
        return mail

    async def settled(self, mail: ClaimedMail, outcome: Outcome, reason: str = "", wait: float = 0.0) -> None:
        """Write what became of a claimed mail."""
        await self.queue.settle([(mail, Result(outcome, reason, wait))])

    async def dead(self, reason: str = "550 5.1.1 no such mailbox at RCPT") -> ClaimedMail:
        """Claim the one mail that is due, and have its server refuse it for good."""
        mail = await self.claimed()
        await self.settled(mail, Outcome.DEAD, reason)
        return mail

    async def passed(self, seconds: float) -> None:
        """Let time pass for every account, mail and bound key: what was written is so much older."""
        for table, columns in {
            "accounts": ("created_at", "registered_at"),
            "mails": ("created_at", "accepted_at", "expires_at", "due_at", "owed_since"),
            "answers": ("expires_at",),
        }.items():
            shifted = ", ".join(f"{column} = {column} - make_interval(secs => %(seconds)s)" for column in columns)
            await self.postgres.run(f"UPDATE vestibule.{table} SET {shifted}", {"seconds": seconds})  # noqa: S608 - constants of this file

    async def rows(self, sql: str) -> list[tuple[object, ...]]:
        """Read anything."""
        return await self.postgres.run(sql, reading=True)  # a test's own constant


@pytest.fixture
async def stores(database: str) -> AsyncIterator[Stores]:
    """Give the stores over a fresh database."""
    async with Postgres.open(database) as postgres:
        yield Stores(postgres)


def new_mail(kind: MailKind = MailKind.CODE) -> NewMail:
    """Return a mail to owe."""
    return NewMail(uuid4(), kind, "k1")


def new_account(email: str = "ada@example.com", key: KeyUse | None = None) -> Register:
    """Return an account to add."""
    return Register(uuid4(), EmailAddress(email, email.casefold()), HASH, "en", new_mail(), key)


def resend(account: Account, kind: MailKind = MailKind.CODE) -> Issue:
    """Return one more mail for an account as it was read."""
    return Issue(account.id, account.version, new_mail(kind))


def take_over(account: Account, password_hash: bytes = b"$2b$04$" + b"y" * 53, key: KeyUse | None = None) -> Issue:
    """Return a registration that replaces an account as it was read."""
    taken = EmailAddress(account.email.upper(), account.email_key)
    new = Register(uuid4(), taken, password_hash, "de", new_mail(), key)
    return Issue(account.id, account.version, new.mail, take_over=new)


def redemption(account: Account, hit: UUID | None = None) -> Redeem:
    """Return a try on an account as it was read: of one of its codes, or of none of them."""
    compared = tuple(mail.id for mail in account.live_mails(POLICY))
    return Redeem(account.id, account.password_hash, account.registration, compared, hit)


def with_transport(url: str, test: Callable[[MailTransport], Awaitable[None]], backend: str = "uvloop") -> None:
    """Run the body of a test around a mail transport, on a loop of the mail worker."""

    async def body() -> None:
        settings = Settings(mail_from="Shop <shop@example.com>", mail_ehlo="mx.example.org")
        with anyio.fail_after(30):
            async with open_transport(settings, url) as transport:
                await test(transport)

    anyio.run(body, backend="asyncio", backend_options={"use_uvloop": backend == "uvloop"})
