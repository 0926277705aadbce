"""UserRegistry: batches by kind, one winner for an address, refusals for the losers alone."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
import trio
import trio.testing

from actors.domain.code import CodeId
from actors.domain.email_address import EmailAddress
from actors.domain.errors import CodesExhausted, EmailTaken, Refusal, RequestInProgress
from actors.kit.supervisor import Supervisor
from actors.ports import IdempotencyClaim, NewAccount, Registered, StoreUnavailable
from actors.user_registry import Find, FindRegistration, Register, UserRegistry
from tests.fakes.accounts import FakeAccounts
from tests.fakes.clock import FakeClock
from tests.fakes.idempotency import FakeIdempotencyKeys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from actors.domain.user import Account
    from actors.kit.mailbox import Address, Ask


class SlowAccounts(FakeAccounts):
    """The fake, which holds its first call until it is let go and remembers the size of every call."""

    def __init__(self) -> None:
        clock = FakeClock()
        super().__init__(clock, FakeIdempotencyKeys(clock))
        self.gate = trio.Event()
        self.sizes: list[tuple[str, int]] = []

    async def find(self, email_keys: Sequence[str]) -> list[Account | None]:
        """Wait, then look up."""
        self.sizes.append(("find", len(email_keys)))
        await self.gate.wait()
        return await super().find(email_keys)

    async def find_registrations(self, registrations: Sequence[UUID]) -> list[Account | None]:
        """Look up."""
        self.sizes.append(("find_registrations", len(registrations)))
        return await super().find_registrations(registrations)

    async def register(self, accounts: Sequence[NewAccount]) -> list[Registered | Refusal]:
        """Register."""
        self.sizes.append(("register", len(accounts)))
        return await super().register(accounts)


@asynccontextmanager
async def registry(accounts: FakeAccounts) -> AsyncIterator[Address]:
    """Run the actor around the body."""
    crashes: list[Exception] = []
    supervisor = Supervisor(lambda _, error: crashes.append(error))
    address = supervisor.employ(lambda: UserRegistry(accounts))
    async with supervisor.running():
        yield address
    assert crashes == []


def new(email: str = "ada@example.com") -> NewAccount:
    """Return a registration with fresh ids."""
    return NewAccount(
        id=uuid4(),
        registration=uuid4(),
        email=EmailAddress(email, email),
        password_hash=b"$2b$12$",
        locale="en",
        code_id=CodeId("k1", uuid4()),
        mail_id=uuid4(),
    )


async def test_what_waits_is_answered_by_one_statement_of_each_kind() -> None:
    """Registrations go first, so that a look-up beside them sees them."""
    accounts = SlowAccounts()
    ada, bob = new(), new("bob@example.com")
    heard: dict[str, Any] = {}

    async def ask(name: str, message: Ask[Any]) -> None:
        heard[name] = await address.ask(message)

    async with registry(accounts) as address, trio.open_nursery() as nursery:
        nursery.start_soon(ask, "first", Find("nobody@example.com"))
        await trio.testing.wait_all_tasks_blocked()
        messages: dict[str, Ask[Any]] = {
            "ada": Register(ada),
            "bob": Register(bob),
            "find": Find("ada@example.com"),
            "nobody": Find("nobody@example.com"),
            "registration": FindRegistration(bob.registration),
        }
        for name, message in messages.items():
            nursery.start_soon(ask, name, message)
        await trio.testing.wait_all_tasks_blocked()
        accounts.gate.set()
    assert accounts.sizes == [("find", 1), ("register", 2), ("find", 2), ("find_registrations", 1)]
    assert (heard["first"], heard["nobody"]) == (None, None)
    assert {heard["ada"].id, heard["find"].id} == {ada.id}
    assert {heard["bob"].id, heard["registration"].id} == {bob.id}


async def test_registrations_of_one_address_in_a_batch_have_one_winner() -> None:
    """The store hears of the address once; the others lose to the first, or share its refusal."""
    accounts = SlowAccounts()
    heard: list[Any] = []

    async def ask() -> None:
        try:
            heard.append(await address.ask(Register(new())))
        except (EmailTaken, CodesExhausted) as refusal:
            heard.append(type(refusal))

    async with registry(accounts) as address:
        for _ in range(2):
            accounts.gate = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(address.ask, Find("nobody@example.com"))
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(3):
                    nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                accounts.gate.set()
    assert [size for call, size in accounts.sizes if call == "register"] == [1, 1]
    assert sum(isinstance(each, Registered) for each in heard) == 1
    assert heard.count(EmailTaken) == 5


async def test_a_refusal_of_one_leaves_the_others_alone() -> None:
    """Each asker hears its own outcome."""
    accounts = SlowAccounts()
    accounts.gate.set()
    async with registry(accounts) as address:
        await address.ask(Register(new()))
        with pytest.raises(EmailTaken):
            await address.ask(Register(new()))
        await address.ask(Register(new("bob@example.com")))


async def test_a_store_that_is_away_is_no_crash() -> None:
    """The askers hear that nothing was done."""
    accounts = SlowAccounts()
    accounts.gate.set()
    accounts.away = StoreUnavailable()
    async with registry(accounts) as address:
        messages: list[Ask[Any]] = [Find("ada@example.com"), FindRegistration(UUID(int=1)), Register(new())]
        for message in messages:
            with pytest.raises(StoreUnavailable):
                await address.ask(message)


async def test_a_registration_that_has_lost_its_key_decides_nothing_for_the_others_of_its_address() -> None:
    """The next one of the batch wins the address, as if the first had never been there."""
    accounts = SlowAccounts()
    heard: dict[UUID, object] = {}

    async def register(account: NewAccount) -> None:
        try:
            heard[account.id] = (await address.ask(Register(account))).id
        except Refusal as refusal:
            heard[account.id] = type(refusal)

    overtaken, second, third = replace(new(), idempotency=IdempotencyClaim(b"d" * 32, uuid4())), new(), new()
    async with registry(accounts) as address, trio.open_nursery() as nursery:
        nursery.start_soon(address.ask, Find("nobody@example.com"))
        await trio.testing.wait_all_tasks_blocked()
        for account in (overtaken, second, third):
            nursery.start_soon(register, account)
            await trio.testing.wait_all_tasks_blocked()
        accounts.gate.set()
    assert heard == {overtaken.id: RequestInProgress, second.id: second.id, third.id: EmailTaken}
    assert accounts.sizes == [("find", 1), ("register", 1), ("register", 1)]
