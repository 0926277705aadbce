"""CodeIssuer: turns per account, redeems before resends, and one ring for all owed mails."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
import trio
import trio.testing

from actors.code_issuer import CodeIssuer, Issue, Redeem, Ring
from actors.domain.code import CodeId
from actors.kit.supervisor import Supervisor
from actors.ports import Missed, NewCode, Redeemed, Redemption, Resent, StoreUnavailable
from tests.fakes.clock import NOON
from tests.fakes.flows import FakeWakeups

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from actors.kit.mailbox import Address, Ask

ADA, BOB = UUID(int=1), UUID(int=2)


class ScriptedCodes:
    """A Codes port that holds its first call, and activates an account once and issues one code for each."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[UUID]]] = []
        self.gate = trio.Event()
        self.away: Exception | None = None
        self._active: set[UUID] = set()
        self._issued: set[UUID] = set()

    async def redeem(self, tries: Sequence[Redemption]) -> list[Redeemed | Missed | None]:
        """Let the first hit of each account win; none of the tries may share an account."""
        await self._begin("redeem", [one.account for one in tries])
        outcomes: list[Redeemed | Missed | None] = []
        for one in tries:
            outcomes.append(None if one.account in self._active else Redeemed(NOON) if one.hit else Missed(4))
            self._active |= {one.account} if one.hit else set()
        return outcomes

    async def issue(self, codes: Sequence[NewCode]) -> list[Resent | None]:
        """Issue the first code of each account; no two may share one."""
        await self._begin("issue", [code.account for code in codes])
        outcomes: list[Resent | None] = []
        for code in codes:
            outcomes.append(None if code.account in self._issued else Resent(code.mail_id, 30, 9))
            self._issued.add(code.account)
        return outcomes

    async def _begin(self, call: str, accounts: list[UUID]) -> None:
        assert len(set(accounts)) == len(accounts)
        self.calls.append((call, accounts))
        await self.gate.wait()
        if self.away is not None:
            raise self.away


def redeem(account: UUID, *, right: bool = True) -> Redeem:
    """Return one try."""
    code_id = CodeId("k1", UUID(int=7))
    return Redeem(Redemption(account, b"$2b$", (code_id,), code_id if right else None, uuid4()))


def issue(account: UUID) -> Issue:
    """Return one wish for a code."""
    return Issue(NewCode(account, b"$2b$", CodeId("k1", uuid4()), uuid4(), None))


@asynccontextmanager
async def issuer(codes: ScriptedCodes, wakeups: FakeWakeups) -> AsyncIterator[Address]:
    """Run the actor around the body; it must not crash."""
    crashes: list[Exception] = []
    supervisor = Supervisor(lambda _, error: crashes.append(error))
    address = supervisor.employ(lambda: CodeIssuer(codes, wakeups))
    async with supervisor.running():
        yield address
    assert crashes == []


async def test_a_batch_goes_to_the_store_in_turns_of_one_per_account() -> None:
    """One statement changes a row once; redeems go first, and what was issued is rung for together."""
    codes, wakeups = ScriptedCodes(), FakeWakeups()
    heard: list[object] = []

    async def ask(message: Ask[Any]) -> None:
        heard.append(await address.ask(message))

    async with issuer(codes, wakeups) as address, trio.open_nursery() as nursery:
        nursery.start_soon(ask, redeem(UUID(int=9), right=False))
        await trio.testing.wait_all_tasks_blocked()
        resends = [issue(ADA), issue(BOB), issue(ADA)]
        messages: list[Ask[Any]] = [*resends, redeem(ADA), redeem(BOB), redeem(ADA), redeem(ADA)]
        for message in messages:
            nursery.start_soon(ask, message)
        ringing = uuid4()
        address.offer(Ring(ringing))
        await trio.testing.wait_all_tasks_blocked()
        codes.gate.set()
    assert [call for call, _ in codes.calls] == ["redeem", "redeem", "redeem", "redeem", "issue", "issue"]
    assert [len(accounts) for _, accounts in codes.calls] == [1, 2, 1, 1, 2, 1]
    assert sum(isinstance(each, Redeemed) for each in heard) == 2
    assert (heard.count(Missed(4)), heard.count(None)) == (1, 3)
    sent = {each.mail_id for each in heard if isinstance(each, Resent)}
    assert len(sent) == 2
    assert wakeups.rung[0] == ringing
    assert set(wakeups.rung[1:]) == sent


async def test_nobody_is_rung_for_nothing() -> None:
    """A redeem owes no mail, and neither does a refused resend."""
    codes, wakeups = ScriptedCodes(), FakeWakeups()
    codes.gate.set()
    async with issuer(codes, wakeups) as address:
        await address.ask(redeem(ADA))
        assert await address.ask(issue(BOB)) is not None
        assert await address.ask(issue(BOB)) is None
    assert len(wakeups.rung) == 1


async def test_a_store_that_is_away_is_no_crash() -> None:
    """The askers hear that nothing was done, and nobody is rung for it."""
    codes, wakeups = ScriptedCodes(), FakeWakeups()
    codes.gate.set()
    codes.away = StoreUnavailable()
    async with issuer(codes, wakeups) as address:
        messages: list[Ask[Any]] = [redeem(ADA), issue(ADA)]
        for message in messages:
            with pytest.raises(StoreUnavailable):
                await address.ask(message)
    assert wakeups.rung == []
