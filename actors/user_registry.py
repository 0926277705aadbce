"""UserRegistry: who has an account, and the one place where a registration is won or lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, assert_never

from actors.domain.errors import EmailTaken, Refusal, RequestInProgress
from actors.domain.user import Account
from actors.kit.actor import Actor, one_fate
from actors.kit.mailbox import Ask
from actors.ports import Registered

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from actors.kit.mailbox import Letter
    from actors.ports import Accounts, NewAccount


@dataclass(frozen=True, slots=True)
class Find(Ask[Account | None]):
    """Look an account up by its address' key; None for an unknown one."""

    email_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class FindRegistration(Ask[Account | None]):
    """Look up the account that a registration made; None when there is none or another has replaced it."""

    registration: UUID


@dataclass(frozen=True, slots=True)
class Register(Ask[Registered]):
    """Add a pending account, its first code and the mail that will carry it, or none of them.

    Raises EmailTaken when the address belongs to an account that is active or still waits under a live code or an
    owed mail, CodesExhausted when the address has had its codes, RequestInProgress when the account's idempotency key
    is another request's.
    """

    account: NewAccount


UserMessage = Find | FindRegistration | Register


class UserRegistry(Actor[UserMessage]):
    """Answers look-ups and registrations, each kind of a batch with one statement."""

    name = "UserRegistry"
    refusals: ClassVar[tuple[type[Exception], ...]] = (Refusal,)

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def handle(self, letters: Sequence[Letter[UserMessage]]) -> None:
        """Register first: a look-up in the same batch then sees it."""
        finds: list[tuple[Letter[UserMessage], str]] = []
        registrations: list[tuple[Letter[UserMessage], UUID]] = []
        accounts: list[tuple[Letter[UserMessage], NewAccount]] = []
        for letter in letters:
            match message := letter.message:
                case Find(email_key):
                    finds.append((letter, email_key))
                case FindRegistration(registration):
                    registrations.append((letter, registration))
                case Register(account):
                    accounts.append((letter, account))
                case _:
                    assert_never(message)
        with one_fate([letter for letter, _ in accounts]):
            await self._register(accounts)
        if finds:
            found = await self._accounts.find([key for _, key in finds])
            _answer([letter for letter, _ in finds], found)
        if registrations:
            found = await self._accounts.find_registrations([registration for _, registration in registrations])
            _answer([letter for letter, _ in registrations], found)

    async def _register(self, asked: list[tuple[Letter[UserMessage], NewAccount]]) -> None:
        """Send one message per address; the others of the same address share the loser's fate.

        One that had lost its idempotency key decides nothing about its address: the others go on without it.
        """
        first: dict[str, tuple[Letter[UserMessage], NewAccount]] = {}
        for letter, account in asked:
            first.setdefault(account.email.key, (letter, account))
        if not first:
            return
        outcomes = await self._accounts.register([account for _, account in first.values()])
        fates: dict[str, Refusal] = {}
        for (letter, account), outcome in zip(first.values(), outcomes, strict=True):
            fates[account.email.key] = outcome if isinstance(outcome, Refusal) else EmailTaken()
            _settle(letter, outcome)
        undecided: list[tuple[Letter[UserMessage], NewAccount]] = []
        for letter, account in asked:
            if not letter.settled:
                fate = fates[account.email.key]
                if isinstance(fate, RequestInProgress):
                    undecided.append((letter, account))
                else:
                    letter.refuse(fate)
        await self._register(undecided)


def _answer(letters: Sequence[Letter[UserMessage]], found: Sequence[Account | None]) -> None:
    for letter, account in zip(letters, found, strict=True):
        letter.answer(account)


def _settle(letter: Letter[UserMessage], outcome: Registered | Refusal) -> None:
    if isinstance(outcome, Refusal):
        letter.refuse(outcome)
    else:
        letter.answer(outcome)
