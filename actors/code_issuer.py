"""CodeIssuer: redeems codes, issues new ones, and rings the mail workers about owed mails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, assert_never

from actors.domain.errors import Refusal
from actors.kit.actor import Actor, one_fate
from actors.kit.mailbox import Ask, Offer
from actors.ports import Missed, NewCode, Redeemed, Redemption, Resent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from actors.kit.mailbox import Letter
    from actors.mail_ports import Wakeups
    from actors.ports import Codes


@dataclass(frozen=True, slots=True)
class Redeem(Ask[Redeemed | Missed | None]):
    """Try a typed code once; None when the account has changed since it was looked up: look again.

    Of any number of redeemers of one code exactly one hears Redeemed.
    """

    redemption: Redemption


@dataclass(frozen=True, slots=True)
class Issue(Ask[Resent | None]):
    """Give a pending account a new code and owe its mail; None as in Redeem, or when it is too soon."""

    code: NewCode


@dataclass(frozen=True, slots=True)
class Ring(Offer):
    """Wake a mail worker for a mail that is owed; lost, the mail leaves a second later."""

    mail_id: UUID


CodeMessage = Redeem | Issue | Ring


class CodeIssuer(Actor[CodeMessage]):
    """Each kind of a batch costs one statement, and all its mails one pipeline."""

    name = "CodeIssuer"
    refusals: ClassVar[tuple[type[Exception], ...]] = (Refusal,)

    def __init__(self, codes: Codes, wakeups: Wakeups) -> None:
        self._codes = codes
        self._wakeups = wakeups

    async def handle(self, letters: Sequence[Letter[CodeMessage]]) -> None:
        """Redeem first: a code lives a minute."""
        redeems: list[tuple[Letter[CodeMessage], Redemption]] = []
        issues: list[tuple[Letter[CodeMessage], NewCode]] = []
        owed: list[UUID] = []
        for letter in letters:
            match message := letter.message:
                case Redeem(redemption):
                    redeems.append((letter, redemption))
                case Issue(code):
                    issues.append((letter, code))
                case Ring(mail_id):
                    owed.append(mail_id)
                case _:
                    assert_never(message)
        with one_fate([letter for letter, _ in redeems]):
            await self._redeem(redeems)
        with one_fate([letter for letter, _ in issues]):
            owed += await self._issue(issues)
        if owed:
            await self._wakeups.ring(owed)

    async def _redeem(self, asked: list[tuple[Letter[CodeMessage], Redemption]]) -> None:
        """Take turns per account: one statement changes a row once."""
        while asked:
            turn = {redemption.account: (letter, redemption) for letter, redemption in reversed(asked)}
            outcomes = await self._codes.redeem([redemption for _, redemption in turn.values()])
            for (letter, _), outcome in zip(turn.values(), outcomes, strict=True):
                letter.answer(outcome)
            asked = [(letter, redemption) for letter, redemption in asked if not letter.settled]

    async def _issue(self, asked: list[tuple[Letter[CodeMessage], NewCode]]) -> list[UUID]:
        """Issue in turns as in _redeem and return the owed mails."""
        owed: list[UUID] = []
        while asked:
            turn = {code.account: (letter, code) for letter, code in reversed(asked)}
            outcomes = await self._codes.issue([code for _, code in turn.values()])
            for (letter, _), outcome in zip(turn.values(), outcomes, strict=True):
                letter.answer(outcome)
                owed += [outcome.mail_id] if outcome is not None else []
            asked = [(letter, code) for letter, code in asked if not letter.settled]
        return owed
