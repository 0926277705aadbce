"""CodeIssuer: redeems codes, issues new ones, and wakes the mail workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from actors.kit.actor import Actor, only
from actors.kit.mailbox import Offer
from actors.ports import Issue, Redeem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from uuid import UUID

    from actors.kit.mailbox import Envelope
    from actors.ports import Accounts, Wakeups

AskT = TypeVar("AskT", Redeem, Issue)


@dataclass(frozen=True, slots=True)
class Wake(Offer):
    """Wake a mail worker for a mail that is owed; a lost one costs the mail a second."""

    mail: UUID


CodeMessage = Redeem | Issue | Wake


class CodeIssuer(Actor[CodeMessage]):
    """Each kind of a batch costs one statement, and all its mails one pipeline."""

    name = "CodeIssuer"

    def __init__(self, accounts: Accounts, wakeups: Wakeups) -> None:
        self._accounts = accounts
        self._wakeups = wakeups

    async def handle(self, envelopes: Sequence[Envelope[CodeMessage]]) -> None:
        """Redeem first: a code lives for a minute."""
        await self._in_turns(only(Redeem, envelopes), self._accounts.redeem)
        await self._in_turns(only(Issue, envelopes), self._accounts.issue)
        owed = [envelope.message.mail for envelope in only(Wake, envelopes)]
        if owed:
            await self._wakeups.wake(owed)

    async def _in_turns(
        self, asked: list[Envelope[AskT]], decide: Callable[[Sequence[AskT]], Awaitable[Sequence[object]]]
    ) -> None:
        """Ask for one request per account at a time: PostgreSQL changes a row only once in a statement."""
        with self.share_failure(asked):
            while asked:
                turn = {envelope.message.account: envelope for envelope in reversed(asked)}.values()
                outcomes = await decide([envelope.message for envelope in turn])
                for envelope, outcome in zip(turn, outcomes, strict=True):
                    envelope.answer(outcome)
                asked = [envelope for envelope in asked if not envelope.settled]
