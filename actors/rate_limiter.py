"""RateLimiter: decides over sliding windows, all waiting requests in one round trip."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.kit.actor import Actor, only
from actors.kit.mailbox import MachineError, Offer
from actors.ports import Admit

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from actors.domain.rate_limit import Admission, Bucket
    from actors.kit.mailbox import Envelope
    from actors.ports import RateLimits


@dataclass(frozen=True, slots=True)
class GiveBack(Offer):
    """Take back what `ticket` counted: the work it was admitted for could not be done."""

    buckets: tuple[Bucket, ...]
    ticket: str = field(repr=False)


class RateLimiter(Actor[Admit | GiveBack]):
    """Holds no window itself, so that any number of workers and machines agree.

    `counted` is the process' counter of what it has decided, by names as the metrics have them:
    `limits_refused|register`.
    """

    name = "RateLimiter"

    def __init__(self, windows: RateLimits, counted: Counter[str]) -> None:
        self._windows = windows
        self._counted = counted

    async def handle(self, envelopes: Sequence[Envelope[Admit | GiveBack]]) -> None:
        """Give back first, which makes room, then decide all that is asked in one call."""
        given = [envelope.message for envelope in only(GiveBack, envelopes)]
        if given:
            await self._give_back(given)
        asked = only(Admit, envelopes)
        admissions = await self._windows.decide([envelope.message for envelope in asked]) if asked else []
        for envelope, admission in zip(asked, admissions, strict=True):
            if envelope.message.count or not admission.admitted:
                count(self._counted, admission)
            envelope.answer(admission)

    async def _give_back(self, given: Sequence[GiveBack]) -> None:
        """Nobody waits for it: when the stores are away the uses stay counted, and their window heals that."""
        try:
            await self._windows.give_back([(one.buckets, one.ticket) for one in given])
        except MachineError:
            self._counted["limits_give_backs_lost"] += len(given)
        else:
            self._counted["limits_given_back"] += len(given)


def count(counted: Counter[str], admission: Admission) -> None:
    """Count for each rule an admission, or for each full one a refusal."""
    decision = "limits_admitted" if admission.admitted else "limits_refused"
    rules = {reading.rule.name for reading in admission.readings if admission.admitted or not reading.remaining}
    counted.update(f"{decision}|{rule}" for rule in rules)
