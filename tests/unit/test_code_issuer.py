"""CodeIssuer: turns per account, redeems before issues, and one wake-up for all owed mails."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
import trio
import trio.testing

from actors.code_issuer import CodeIssuer, Wake
from actors.domain.mail import MailKind
from actors.kit.supervisor import Supervisor
from actors.ports import Issue, Missed, NewMail, Redeem, Redeemed, Registered, StoreUnavailable
from tests.fakes.accounts import FakeAccounts
from tests.fakes.clock import NOON, FakeClock
from tests.fakes.flows import FakeWakeups

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from actors.kit.mailbox import Address, Ask

ADA, BOB = UUID(int=1), UUID(int=2)


class ScriptedAccounts(FakeAccounts):
    """Holds its first call, and activates an account once and issues one code for each."""

    def __init__(self) -> None:
        super().__init__(FakeClock())
        self.batches: list[tuple[str, list[UUID]]] = []
        self.gate = trio.Event()
        self._active: set[UUID] = set()
        self._issued: set[UUID] = set()

    async def redeem(self, tries: Sequence[Redeem]) -> list[Redeemed | Missed | None]:
        """Let the first hit of each account win; none of the tries may share an account."""
        await self._begin("redeem", [one.account for one in tries])
        outcomes: list[Redeemed | Missed | None] = []
        for one in tries:
            outcomes.append(None if one.account in self._active else Redeemed(NOON) if one.hit else Missed(4))
            self._active |= {one.account} if one.hit else set()
        return outcomes

    async def issue(self, issues: Sequence[Issue]) -> list[Registered | None]:
        """Issue the first code of each account; no two may share one."""
        await self._begin("issue", [one.account for one in issues])
        outcomes: list[Registered | None] = []
        for one in issues:
            outcomes.append(None if one.account in self._issued else Registered(one.account, 1, NOON))
            self._issued.add(one.account)
        return outcomes

    async def _begin(self, call: str, accounts: list[UUID]) -> None:
        assert len(set(accounts)) == len(accounts)
        self.batches.append((call, accounts))
        await self.gate.wait()
        self._call(call)


def redeem(account: UUID, *, right: bool = True) -> Redeem:
    """Return one try."""
    mail = UUID(int=7)
    return Redeem(account, b"$2b$", 1, (mail,), mail if right else None)


def issue(account: UUID) -> Issue:
    """Return one wish for a code."""
    return Issue(account, 1, NewMail(uuid4(), MailKind.CODE, "k1"))


@asynccontextmanager
async def issuer(accounts: ScriptedAccounts, wakeups: FakeWakeups) -> AsyncIterator[Address]:
    """Run the actor around the body; it must not crash."""
    crashes: list[Exception] = []
    supervisor = Supervisor(lambda _, error: crashes.append(error))
    address = supervisor.start(lambda: CodeIssuer(accounts, wakeups))
    async with supervisor.running():
        yield address
    assert crashes == []


async def test_a_batch_goes_to_the_store_in_turns_of_one_per_account() -> None:
    """One statement changes a row once; redeems go first, and all wake-ups of a batch are one call."""
    accounts, wakeups = ScriptedAccounts(), FakeWakeups()
    answers: list[object] = []

    async def ask(message: Ask[Any]) -> None:
        answers.append(await address.ask(message))

    async with issuer(accounts, wakeups) as address, trio.open_nursery() as nursery:
        nursery.start_soon(ask, redeem(UUID(int=9), right=False))
        await trio.testing.wait_all_tasks_blocked()
        messages: list[Ask[Any]] = [issue(ADA), issue(BOB), issue(ADA), *[redeem(one) for one in (ADA, BOB, ADA, ADA)]]
        for message in messages:
            nursery.start_soon(ask, message)
        owed = [uuid4(), uuid4()]
        for mail in owed:
            address.offer(Wake(mail))
        await trio.testing.wait_all_tasks_blocked()
        accounts.gate.set()
    assert [call for call, _ in accounts.batches] == ["redeem", "redeem", "redeem", "redeem", "issue", "issue"]
    assert [len(batch) for _, batch in accounts.batches] == [1, 2, 1, 1, 2, 1]
    assert sum(isinstance(each, Redeemed) for each in answers) == 2
    assert sum(isinstance(each, Registered) for each in answers) == 2
    assert (answers.count(Missed(4)), answers.count(None)) == (1, 3)
    assert wakeups.woken == owed


async def test_a_store_that_is_away_is_no_crash() -> None:
    """The askers hear that nothing was done, of either kind, and the wake-ups of the batch still leave."""
    accounts, wakeups = ScriptedAccounts(), FakeWakeups()
    accounts.gate.set()
    accounts.away = StoreUnavailable()
    messages: list[Ask[Any]] = [redeem(ADA), issue(ADA)]
    async with issuer(accounts, wakeups) as address:
        for message in messages:
            with pytest.raises(StoreUnavailable):
                await address.ask(message)
        address.offer(Wake(ADA))
    assert wakeups.woken == [ADA]
