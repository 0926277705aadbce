"""CodeIssuer: redeems codes, issues new ones, and wakes the mail workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, assert_never

from actors.kit.actor import Actor, share_failure
from actors.kit.mailbox import Ask, Offer
from actors.ports import Missed, Redeemed, Registered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import TypeVar
    from uuid import UUID

    from actors.kit.mailbox import Envelope
    from actors.ports import Accounts, NewIssue, Redemption, Wakeups

    RequestT = TypeVar("RequestT", Redemption, NewIssue)


@dataclass(frozen=True, slots=True)
class Redeem(Ask[Redeemed | Missed | None]):
    """Try to activate; None when the account has changed since it was looked up: look again and say why."""

    redemption: Redemption


@dataclass(frozen=True, slots=True)
class Issue(Ask[Registered | None]):
    """Owe a pending account one more code mail; None when the account has changed since it was looked up."""

    issue: NewIssue


@dataclass(frozen=True, slots=True)
class Wake(Offer):
    """Wake a mail worker for a mail that is owed; a lost one costs the mail a second."""

    mail: UUID


CodeMessage = Redeem | Issue | Wake


class CodeIssuer(Actor[CodeMessage]):
    """Each kind of a batch costs one statement, and all its mails one pipeline."""

    name = "CodeIssuer"
    refusals: ClassVar[tuple[type[Exception], ...]] = ()

    def __init__(self, accounts: Accounts, wakeups: Wakeups) -> None:
        self._accounts = accounts
        self._wakeups = wakeups

    async def handle(self, envelopes: Sequence[Envelope[CodeMessage]]) -> None:
        """Redeem first: a code lives for a minute."""
        redeems: list[tuple[Envelope[CodeMessage], Redemption]] = []
        issues: list[tuple[Envelope[CodeMessage], NewIssue]] = []
        owed: list[UUID] = []
        for envelope in envelopes:
            match message := envelope.message:
                case Redeem(redemption):
                    redeems.append((envelope, redemption))
                case Issue(issue):
                    issues.append((envelope, issue))
                case Wake(mail):
                    owed.append(mail)
                case _:
                    assert_never(message)
        await _in_turns(redeems, self._accounts.redeem)
        await _in_turns(issues, self._accounts.issue)
        if owed:
            await self._wakeups.wake(owed)


async def _in_turns(
    asked: list[tuple[Envelope[CodeMessage], RequestT]],
    decide: Callable[[Sequence[RequestT]], Awaitable[Sequence[object]]],
) -> None:
    """Ask for one request per account at a time: PostgreSQL changes a row only once in a statement."""
    with share_failure([envelope for envelope, _ in asked]):
        while asked:
            turn = {request.account: (envelope, request) for envelope, request in reversed(asked)}
            outcomes = await decide([request for _, request in turn.values()])
            for (envelope, _), outcome in zip(turn.values(), outcomes, strict=True):
                envelope.answer(outcome)
            asked = [pair for pair in asked if not pair[0].settled]
