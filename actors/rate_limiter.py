"""RateLimiter: decides over sliding windows, all waiting requests in one round trip."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, assert_never
from uuid import uuid4

from actors.domain.rate_limit import Admission
from actors.kit.actor import Actor
from actors.kit.mailbox import Ask, MachineError, Offer
from actors.ports import WindowRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actors.domain.rate_limit import Bucket
    from actors.kit.mailbox import Envelope
    from actors.ports import RateLimits


@dataclass(frozen=True, slots=True)
class Admit(Ask[Admission]):
    """Count one use in every bucket if each has room, else in none; with `count` False only look.

    A full window is an answer, not a refusal: `Admission.admitted` says which. No buckets admit. The ticket is the
    message's own, so that handling it again after a crash counts nothing twice.
    """

    buckets: tuple[Bucket, ...]
    count: bool = True
    ticket: str = field(default_factory=lambda: uuid4().hex, repr=False)


@dataclass(frozen=True, slots=True)
class GiveBack(Offer):
    """Take back what `ticket` counted: the work it was admitted for could not be done."""

    buckets: tuple[Bucket, ...]
    ticket: str = field(repr=False)


Message = Admit | GiveBack


class Decisions:
    """What this process' limiter has decided, by rule; made once and handed to every new copy of the actor."""

    def __init__(self) -> None:
        self._admitted: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._given_back = 0
        self._lost = 0

    def note(self, admission: Admission) -> None:
        """Count a decision: for each rule an admission, or for each full one a refusal."""
        if admission.admitted:
            self._admitted.update({reading.rule.name for reading in admission.readings})
        else:
            self._refused.update({reading.rule.name for reading in admission.readings if not reading.remaining})

    def note_given_back(self, tickets: int, *, lost: bool) -> None:
        """Count tickets that were given back, or that stay counted because the stores were away."""
        if lost:
            self._lost += tickets
        else:
            self._given_back += tickets

    def counters(self) -> Mapping[str, int]:
        """Return everything counted, by names as the metrics have them: `limits_refused|register`."""
        return {
            **{f"limits_admitted|{rule}": count for rule, count in self._admitted.items()},
            **{f"limits_refused|{rule}": count for rule, count in self._refused.items()},
            "limits_given_back": self._given_back,
            "limits_give_backs_lost": self._lost,
        }


class RateLimiter(Actor[Message]):
    """Holds no count itself, so that any number of workers and machines agree."""

    name = "RateLimiter"
    refusals: ClassVar[tuple[type[Exception], ...]] = ()

    def __init__(self, windows: RateLimits, decisions: Decisions | None = None) -> None:
        self._windows = windows
        self._decisions = decisions or Decisions()

    async def handle(self, envelopes: Sequence[Envelope[Message]]) -> None:
        """Give back first, which makes room, then decide all that is asked in one call."""
        given: list[tuple[tuple[Bucket, ...], str]] = []
        asked: list[tuple[Envelope[Message], WindowRequest]] = []
        for envelope in envelopes:
            match message := envelope.message:
                case GiveBack(buckets, ticket):
                    given.append((buckets, ticket))
                case Admit((), _, ticket):
                    envelope.answer(Admission.read(ticket, admitted=True, readings=()))
                case Admit(buckets, count, ticket):
                    asked.append((envelope, WindowRequest(buckets, count, ticket)))
                case _:
                    assert_never(message)
        await self._give_back(given)
        await self._decide(asked)

    async def _give_back(self, given: list[tuple[tuple[Bucket, ...], str]]) -> None:
        """Nobody waits for it: when the stores are away the uses stay counted, and their window heals that."""
        if not given:
            return
        try:
            await self._windows.give_back(given)
        except MachineError:
            self._decisions.note_given_back(len(given), lost=True)
        else:
            self._decisions.note_given_back(len(given), lost=False)

    async def _decide(self, asked: list[tuple[Envelope[Message], WindowRequest]]) -> None:
        if not asked:
            return
        admissions = await self._windows.decide([request for _, request in asked])
        for (envelope, request), admission in zip(asked, admissions, strict=True):
            if request.count or not admission.admitted:
                self._decisions.note(admission)
            envelope.answer(admission)
