"""One address under attack: everything that anybody can do to its codes, over the real flows, and what is counted."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import anyio
import pytest

from actors.access import Entry
from actors.code_flows import CodeFlows
from actors.code_issuer import CodeIssuer
from actors.domain.errors import CodesExhausted, EmailTaken, Refusal, WrongCode
from actors.forms import Rules, Visit
from actors.kit.mailbox import Address, Mailbox
from actors.kit.supervisor import Supervisor
from actors.ports import Missed, Redeemed
from actors.user_registry import Register, UserRegistry
from service.adapters.common_passwords import CommonPasswords
from service.adapters.email_addresses import EmailAddresses
from tests.contracts.conftest import KEYRING, People
from tests.fakes.accounts import DEFAULTS
from tests.fakes.flows import FakeWakeups

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from uuid import UUID

    from actors.domain.code import CodeId
    from actors.domain.user import Account
    from actors.ports import Codes, NewCode, Redemption, Resent
    from tests.contracts.desks import Desk

DAY: Final = 86400.0
CODES_A_DAY: Final = 10
CODES_AN_HOUR: Final = 5
SLACK: Final = 5.0  # seconds that a real database's clock may go ahead of the test's


@dataclass(slots=True)
class Issued:
    """One code that somebody asked for, with the fresh ones that its mail was given later."""

    at: float
    tries: int = 0


@dataclass(slots=True)
class Counts:
    """The test's own book: what was issued when, how often each code was tried, and which of them are dead."""

    now: float = 0.0
    issued: dict[CodeId, Issued] = field(default_factory=dict)
    mails: dict[UUID, CodeId] = field(default_factory=dict)
    born: dict[CodeId, CodeId] = field(default_factory=dict)  # a fresh code's root
    expiry: dict[CodeId, float] = field(default_factory=dict)
    tries: list[float] = field(default_factory=list)
    activated: bool = False

    def issue(self, code_id: CodeId, mail_id: UUID) -> None:
        """Note a code that was asked for."""
        self.issued[code_id], self.mails[mail_id] = Issued(self.now), code_id
        self.born[code_id], self.expiry[code_id] = code_id, self.now + DEFAULTS.max_age

    def freshen(self, mail_id: UUID, fresh: CodeId) -> None:
        """Note that a mail carries another code now, which inherits what was tried on the one before."""
        self.born[fresh], self.expiry[fresh] = self.born[self.mails[mail_id]], self.now + DEFAULTS.max_age
        self.mails[mail_id] = fresh

    def accepted(self, code_id: CodeId) -> None:
        """Note that a code's minute runs."""
        self.expiry[code_id] = min(self.expiry[code_id], self.now + DEFAULTS.ttl)

    def only(self, alive: CodeId) -> None:
        """Note that every other code is superseded."""
        self.expiry.update({code_id: -1.0 for code_id in self.expiry if code_id != alive})

    def missed(self, live: Sequence[CodeId]) -> None:
        """Note a counted try of what was live when it was typed; more than its attempts no code has to bear."""
        self.tries.append(self.now)
        for root in {self.born[code_id] for code_id in live}:
            self.issued[root].tries += 1

    def dead(self) -> list[CodeId]:
        """Return the codes that must not activate any more: too old, or tried too often."""
        return [
            code_id
            for code_id, end in self.expiry.items()
            if end < self.now or self.issued[self.born[code_id]].tries >= DEFAULTS.attempts
        ]

    def most_within(self, seconds: float, times: Sequence[float]) -> int:
        """Return how many of the times lie within any stretch of so many seconds."""
        return max((sum(begin <= at < begin + seconds - SLACK for at in times) for begin in times), default=0)


class CountedCodes:
    """The Codes port with the book beside it."""

    def __init__(self, codes: Codes, counts: Counts) -> None:
        self._codes = codes
        self._counts = counts

    async def redeem(self, tries: Sequence[Redemption]) -> list[Redeemed | Missed | None]:
        """Decide each try, and note those that were compared in vain."""
        outcomes = await self._codes.redeem(tries)
        for one, outcome in zip(tries, outcomes, strict=True):
            match outcome:
                case Missed():
                    self._counts.missed(one.live)
                case Redeemed():
                    self._counts.activated = True
        return outcomes

    async def issue(self, codes: Sequence[NewCode]) -> list[Resent | None]:
        """Issue, and note it."""
        outcomes = await self._codes.issue(codes)
        for code, outcome in zip(codes, outcomes, strict=True):
            if outcome is not None:
                self._counts.issue(code.code_id, code.mail_id)
        return outcomes


class Siege:
    """The address, and what can be done to it; each call stands for somebody whose password was right."""

    def __init__(self, desk: Desk) -> None:
        self.counts = Counts()
        self._desk = desk
        self._email = f"{uuid4().hex}@example.com"
        self._registry: Address
        self._flows: CodeFlows

    @classmethod
    @asynccontextmanager
    async def laid(cls, desk: Desk) -> AsyncIterator[Siege]:
        """Employ the actors around the body."""
        siege = cls(desk)
        supervisor = Supervisor(lambda *_: None)
        siege._registry = supervisor.employ(lambda: UserRegistry(desk.accounts))
        codes = CountedCodes(desk.codes, siege.counts)
        issuer = supervisor.employ(lambda: CodeIssuer(codes, FakeWakeups()))
        rules = Rules(KEYRING, DEFAULTS.attempts, DEFAULTS.cooldown, EmailAddresses(), CommonPasswords([]))
        siege._flows = CodeFlows(siege._registry, issuer, rules)
        async with supervisor.running():
            yield siege

    async def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.counts.now += seconds
        await self._desk.wait(seconds)

    async def account(self) -> Account | None:
        """Return the account, if there is one."""
        (found,) = await self._desk.accounts.find([self._email])
        return found

    async def register(self) -> None:
        """Register with a password of one's own; refused while a code lives."""
        new = People(self._email).registering(hashed=b"$2b$12$" + uuid4().hex.encode())
        with suppress(EmailTaken, CodesExhausted):
            await self._registry.ask(Register(new))
            self.counts.issue(new.code_id, new.mail_id)
            self.counts.only(new.code_id)

    async def resend(self) -> None:
        """Ask for another code."""
        account = await self.account()
        if account is not None:
            nobody = Entry(Address(Mailbox(1)), "", (), ())
            with suppress(Refusal):
                await self._flows.reissue(Visit(()), account, nobody)

    async def guess(self, times: int) -> None:
        """Type wrong digits so many times at once."""
        async with anyio.create_task_group() as crowd:
            for _ in range(times):
                crowd.start_soon(self._wrong)

    async def _wrong(self) -> None:
        account = await self.account()
        if account is None:
            return
        codes = {KEYRING.code(account.id, code_id) for code_id in self.counts.born}
        digits = next(digit * KEYRING.digits for digit in "0123456789" if digit * KEYRING.digits not in codes)
        with suppress(Refusal):
            await self._flows.redeem(account, digits)

    async def type_dead(self, code_id: CodeId) -> None:
        """Type the digits of a dead code: it activates nothing, and where it was superseded it costs nothing."""
        account = await self.account()
        assert account is not None
        before = len(self.counts.tries)
        with pytest.raises(Refusal) as refused:
            await self._flows.redeem(account, KEYRING.code(account.id, code_id))
        if isinstance(refused.value, WrongCode) and refused.value.superseded:
            assert len(self.counts.tries) == before

    async def accept(self, mail_id: UUID) -> None:
        """Let the mail server take a mail; the newest code's acceptance kills the one before."""
        account, code_id = await self.account(), self.counts.mails[mail_id]
        assert account is not None
        if await self._desk.accept(mail_id):
            self.counts.accepted(code_id)
            if account.code.id == code_id:
                self.counts.only(code_id)

    async def bury(self, mail_id: UUID) -> None:
        """Let a mail be refused for good."""
        await self._desk.bury(mail_id)

    async def freshen(self, mail_id: UUID) -> None:
        """Let a mail that was owed for too long carry another code."""
        fresh = KEYRING.code_id(uuid4())
        if await self._desk.freshen(mail_id, fresh):
            self.counts.freshen(mail_id, fresh)
