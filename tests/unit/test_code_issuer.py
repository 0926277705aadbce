"""CodeIssuer: turns per account, redeems before issues, and one wake-up for all owed mails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from actors.code_issuer import CodeIssuer, CodeMessage, Wake
from actors.domain.mail import MailKind
from actors.kit.mailbox import Envelope
from actors.ports import Issue, NewMail, Redeem, StoreUnavailable
from tests.fakes.accounts import FakeAccounts
from tests.fakes.callers import refused
from tests.fakes.clock import FakeClock
from tests.fakes.flows import FakeWakeups

ADA, BOB = UUID(int=1), UUID(int=2)


class ScriptedAccounts(FakeAccounts):
    """Answers what it was asked; `batches` has each call with the accounts that it was about."""

    def __init__(self) -> None:
        super().__init__(FakeClock())
        self.batches: list[tuple[str, list[UUID]]] = []

    async def redeem(self, tries: Sequence[Redeem]) -> Any:  # noqa: ANN401 - the askers look at it, not the actor
        """Note the tries."""
        return self._decide("redeem", tries)

    async def issue(self, issues: Sequence[Issue]) -> Any:  # noqa: ANN401 - as above
        """Note the wishes."""
        return self._decide("issue", issues)

    def _decide(self, call: str, asked: Sequence[Redeem | Issue]) -> Sequence[object]:
        self._reach()
        self.batches.append((call, [one.account for one in asked]))
        return asked


def redeem(account: UUID) -> Redeem:
    """Return one try."""
    return Redeem(account, b"$2b$", 1, (), uuid4())


def issue(account: UUID) -> Issue:
    """Return one wish for a code."""
    return Issue(account, 1, NewMail(uuid4(), MailKind.CODE, "k1"))


async def test_a_batch_goes_to_the_store_in_turns_of_one_per_account() -> None:
    """One statement changes a row once; redeems go first, and all wake-ups of a batch are one call."""
    accounts, wakeups = ScriptedAccounts(), FakeWakeups()
    asks: list[Redeem | Issue] = [*map(issue, (ADA, BOB, ADA)), *map(redeem, (ADA, BOB, ADA, ADA))]
    messages: list[CodeMessage] = [Wake(ADA), *asks, Wake(BOB)]
    envelopes = [Envelope(message) for message in messages]
    await CodeIssuer(accounts, wakeups).work(envelopes)
    assert [call for call, _ in accounts.batches] == ["redeem"] * 3 + ["issue"] * 2
    assert [sorted(about) for _, about in accounts.batches] == [[ADA, BOB], [ADA], [ADA], [ADA, BOB], [ADA]]
    assert [await envelope.outcome() for envelope in envelopes[1:-1]] == asks
    assert (wakeups.woken, wakeups.calls) == ([ADA, BOB], 1)


async def test_a_store_that_is_away_is_no_crash() -> None:
    """The askers hear that nothing was done, of either kind, and the wake-ups of the batch still leave."""
    accounts, wakeups = ScriptedAccounts(), FakeWakeups()
    accounts.away = StoreUnavailable()
    messages: list[CodeMessage] = [redeem(ADA), issue(ADA), Wake(ADA)]
    envelopes = [Envelope(message) for message in messages]
    await CodeIssuer(accounts, wakeups).work(envelopes)
    for envelope in envelopes[:2]:
        await refused(StoreUnavailable, envelope.outcome())
    assert wakeups.woken == [ADA]
