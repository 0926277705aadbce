"""CodeIssuer: turns per account, redeems before issues, and one wake-up for all owed mails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import UUID, uuid4

import trio
from trio.testing import wait_all_tasks_blocked

from actors.code_issuer import CodeIssuer, Wake
from actors.domain.mail import MailKind
from actors.kit.mailbox import Address, Ask
from actors.kit.supervisor import Supervisor
from actors.ports import Issue, Missed, NewMail, Redeem, Redeemed, Registered, StoreUnavailable
from tests.fakes.accounts import FakeAccounts
from tests.fakes.callers import callers, refused
from tests.fakes.clock import NOON, FakeClock
from tests.fakes.flows import FakeWakeups

AskT = TypeVar("AskT", Redeem, Issue)

ADA, BOB = UUID(int=1), UUID(int=2)


class ScriptedAccounts(FakeAccounts):
    """Holds its first call, and activates an account once and issues one code for each."""

    def __init__(self) -> None:
        super().__init__(FakeClock())
        self.batches: list[tuple[str, int]] = []
        self.gate = trio.Event()
        self._done: set[tuple[str, UUID]] = set()

    async def redeem(self, tries: Sequence[Redeem]) -> list[Redeemed | Missed | None]:
        """Let the first hit of each account win."""
        first = await self._begin("redeem", tries)
        return [Missed(4) if one.hit is None else Redeemed(NOON) if one in first else None for one in tries]

    async def issue(self, issues: Sequence[Issue]) -> list[Registered | None]:
        """Issue the first code of each account."""
        first = await self._begin("issue", issues)
        return [Registered(one.account, 1, NOON) if one in first else None for one in issues]

    async def _begin(self, call: str, asked: Sequence[AskT]) -> list[AskT]:
        """Return what is asked for the first time; no two of a batch may share an account."""
        accounts = {(call, one.account) for one in asked}
        assert len(accounts) == len(asked)
        self.batches.append((call, len(asked)))
        await self.gate.wait()
        self._reach()
        first = [one for one in asked if (call, one.account) not in self._done]
        self._done |= accounts
        return first


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
    accounts, wakeups, owed = ScriptedAccounts(), FakeWakeups(), [uuid4(), uuid4()]
    messages: list[Ask[Any]] = [issue(ADA), issue(BOB), issue(ADA), *[redeem(one) for one in (ADA, BOB, ADA, ADA)]]
    async with issuer(accounts, wakeups) as address, callers() as askers:
        await askers.call_in_turn(address.ask, redeem(UUID(int=9), right=False))
        for message in messages:
            askers.call(address.ask, message)
        for mail in owed:
            address.offer(Wake(mail))
        await wait_all_tasks_blocked()
        accounts.gate.set()
    assert accounts.batches == [("redeem", 1), ("redeem", 2), ("redeem", 1), ("redeem", 1), ("issue", 2), ("issue", 1)]
    assert sum(isinstance(each, Redeemed) for each in askers.heard) == 2
    assert sum(isinstance(each, Registered) for each in askers.heard) == 2
    assert (askers.heard.count(Missed(4)), askers.heard.count(None)) == (1, 3)
    assert wakeups.woken == owed


async def test_a_store_that_is_away_is_no_crash() -> None:
    """The askers hear that nothing was done, of either kind, and the wake-ups of the batch still leave."""
    accounts, wakeups = ScriptedAccounts(), FakeWakeups()
    accounts.gate.set()
    accounts.away = StoreUnavailable()
    async with issuer(accounts, wakeups) as address:
        await refused(StoreUnavailable, address.ask(redeem(ADA)))
        await refused(StoreUnavailable, address.ask(issue(ADA)))
        address.offer(Wake(ADA))
    assert wakeups.woken == [ADA]
