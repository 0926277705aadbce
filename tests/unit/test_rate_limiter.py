"""The RateLimiter over windows in memory, on a clock that stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from actors.domain.rate_limit import Admission, Bucket, Rule
from actors.kit.mailbox import Envelope
from actors.ports import Admit, StoreUnavailable
from actors.rate_limiter import GiveBack, RateLimiter
from tests.fakes.callers import refused
from tests.fakes.clock import FakeClock
from tests.fakes.rate_limits import FakeRateLimits

MINE = Bucket(Rule("register", 3, 3600), "192.0.2.7")
WIDE = Bucket(Rule("wide", 9, 60), "192.0.2.7")


class Limiter(FakeRateLimits):
    """The actor over windows that remember the sizes of their batches and can crash once, after deciding."""

    def __init__(self) -> None:
        super().__init__(FakeClock())
        self.batches: list[int] = []
        self.crashes = 0
        self.counted = Counter[str]()

    async def decide(self, asked: Sequence[Admit]) -> list[Admission]:
        """Decide, then crash if it is time to."""
        self.batches.append(len(asked))
        decided = await super().decide(asked)
        if self.crashes:
            self.crashes -= 1
            raise ZeroDivisionError
        return decided

    async def work(self, *messages: Admit | GiveBack) -> list[Envelope[Any]]:
        """Have the actor handle these in one batch."""
        envelopes = [Envelope(message) for message in messages]
        await RateLimiter(self, self.counted).work(envelopes)
        return envelopes

    async def ask(self, *buckets: Bucket, count: bool = True) -> Admission:
        """Ask for one admission."""
        [envelope] = await self.work(Admit(buckets, count))
        admission: Admission = await envelope.outcome()
        return admission


async def test_a_batch_is_decided_in_one_call_and_what_is_given_back_first() -> None:
    """Each request gets its own answer."""
    limiter = Limiter()
    ticket = (await limiter.ask(MINE)).ticket
    envelopes = await limiter.work(*[Admit((MINE,)) for _ in range(9)], GiveBack((MINE,), ticket))
    answers = [(await envelope.outcome()).admitted for envelope in envelopes[:9]]
    assert (limiter.batches, answers) == ([1, 9], [True] * 3 + [False] * 6)


async def test_a_crash_counts_nobody_twice() -> None:
    """Asks that are handled again after a crash in the midst of their batch use one place each."""
    limiter = Limiter()
    limiter.crashes = 1
    with pytest.raises(ZeroDivisionError):
        await limiter.work(Admit((MINE,)), Admit((MINE,)))
    assert limiter.batches == [2, 1, 1]
    assert (await limiter.ask(MINE, count=False)).readings[0].remaining == 1


async def test_an_outage_refuses_and_passes() -> None:
    """While the stores are away nobody is admitted, and a give-back is counted as lost."""
    limiter = Limiter()
    ticket = (await limiter.ask(MINE)).ticket
    for lost in (1, 2):
        limiter.away = StoreUnavailable()
        _, envelope = await limiter.work(GiveBack((MINE,), ticket), Admit((MINE,)))
        await refused(StoreUnavailable, envelope.outcome())
        limiter.away = None
        assert (await limiter.ask(MINE)).readings[0].remaining == 2 - lost
        assert (limiter.counted["limits_give_backs_lost"], limiter.counted["limits_given_back"]) == (lost, 0)


async def test_decisions_are_counted_by_rule() -> None:
    """Uses count as admitted for each rule, refusals for the full ones alone, looks only when they refuse."""
    limiter = Limiter()
    for _ in range(3):
        await limiter.ask(MINE, WIDE, count=False)
        await limiter.ask(MINE, WIDE)
    await limiter.ask(MINE, WIDE)
    assert not (await limiter.ask(MINE, WIDE, count=False)).admitted
    for _ in range(2):
        await limiter.work(GiveBack((MINE,), "unknown"))
    assert limiter.counted == {
        "limits_admitted|register": 3,
        "limits_admitted|wide": 3,
        "limits_refused|register": 2,
        "limits_given_back": 2,
    }
