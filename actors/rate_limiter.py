"""RateLimiter: decides over sliding windows, all waiting requests in one round trip."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar
from uuid import uuid4

from actors.domain.windows import Admission
from actors.kit.actor import Actor
from actors.kit.mailbox import Ask, Offer
from actors.ports import WindowRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.domain.windows import Bucket
    from actors.kit.mailbox import Letter
    from actors.ports import Windows


@dataclass(frozen=True, slots=True)
class Admit(Ask[Admission]):
    """Count one use in every bucket if each has room, else in none; with `count` False only look.

    A full window is an answer, not a refusal: `Admission.admitted` says which.
    """

    buckets: tuple[Bucket, ...]
    count: bool = True


@dataclass(frozen=True, slots=True)
class GiveBack(Offer):
    """Take back what `ticket` counted: the work it was admitted for could not be done."""

    buckets: tuple[Bucket, ...]
    ticket: str = field(repr=False)


class RateLimiter(Actor):
    """Holds no count itself, so that any number of workers and machines agree."""

    name = "RateLimiter"
    refusals: ClassVar[tuple[type[Exception], ...]] = ()

    def __init__(self, windows: Windows) -> None:
        self._windows = windows

    async def handle(self, letters: Sequence[Letter]) -> None:
        """Decide all that is asked in one call, then give back in another."""
        asked = [(letter, letter.message) for letter in letters if isinstance(letter.message, Admit)]
        given = [(m.buckets, m.ticket) for m in (letter.message for letter in letters) if isinstance(m, GiveBack)]
        if given:
            await self._windows.give_back(given)
        if not asked:
            return
        requests = [WindowRequest(message.buckets, message.count, uuid4().hex) for _, message in asked]
        for (letter, _), admission in zip(asked, await self._windows.decide(requests), strict=True):
            letter.answer(admission)
