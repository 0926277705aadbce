"""ShadowRegistry: all registrations of an address, under ENUMERATION=strict; at most one of them holds the address."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from actors.domain.errors import Refusal
from actors.domain.user import Account
from actors.kit.actor import Actor, one_fate
from actors.kit.mailbox import Ask
from actors.ports import Registered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.kit.mailbox import Letter
    from actors.ports import NewAccount, Registrations


@dataclass(frozen=True, slots=True)
class FindAll(Ask[tuple[Account, ...]]):
    """Look up every registration of an address' key, the account that is active first."""

    email_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Enter(Ask[Registered]):
    """Add a registration beside all others of its address, with a code and a mail; no address is taken.

    One whose password the address has already stays as it is while its code lives or its budget is used up. Raises
    RequestInProgress when the account's idempotency key is another request's.
    """

    account: NewAccount


ShadowMessage = FindAll | Enter


class ShadowRegistry(Actor[ShadowMessage]):
    """Answers look-ups and registrations, each kind of a batch with one statement."""

    name = "ShadowRegistry"

    def __init__(self, registrations: Registrations) -> None:
        self._registrations = registrations

    async def handle(self, letters: Sequence[Letter[ShadowMessage]]) -> None:
        """Enter first: a look-up in the same batch then sees it."""
        finds: list[tuple[Letter[ShadowMessage], str]] = []
        entries: list[tuple[Letter[ShadowMessage], NewAccount]] = []
        for letter in letters:
            match message := letter.message:
                case FindAll(email_key):
                    finds.append((letter, email_key))
                case Enter(account):
                    entries.append((letter, account))
                case _:
                    assert_never(message)
        if entries:
            with one_fate([letter for letter, _ in entries]):
                await self._enter(entries)
        if finds:
            found = await self._registrations.find_all([email_key for _, email_key in finds])
            for (letter, _), accounts in zip(finds, found, strict=True):
                letter.answer(accounts)

    async def _enter(self, asked: list[tuple[Letter[ShadowMessage], NewAccount]]) -> None:
        outcomes = await self._registrations.enter([account for _, account in asked])
        for (letter, _), outcome in zip(asked, outcomes, strict=True):
            if isinstance(outcome, Refusal):
                letter.refuse(outcome)
            else:
                letter.answer(outcome)
