"""Sliding windows in memory, on a clock that the test holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from actors.domain.rate_limit import TICK_SECONDS, Admission, Bucket, Reading
from actors.ports import Admit


class FakeRateLimits:
    """The RateLimits port for one process; `away` makes every call raise it.

    Times are kept in whole microseconds, as the real stores keep them, and windows are closed at both ends.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ends: dict[str, dict[str, int]] = {}
        self.away: Exception | None = None

    async def decide(self, asked: Sequence[Admit]) -> list[Admission]:
        """Decide each request in order."""
        self._present()
        return [self._decide(request) for request in asked]

    async def give_back(self, given: Sequence[tuple[tuple[Bucket, ...], str]]) -> None:
        """Remove what each ticket counted in its buckets."""
        self._present()
        for buckets, ticket in given:
            for bucket in buckets:
                self._live(bucket).pop(ticket, None)

    def _decide(self, request: Admit) -> Admission:
        full = [bucket for bucket in request.buckets if self._full(bucket, request.ticket)]
        if request.count and not full:
            for bucket in request.buckets:
                end = self._now() + round(bucket.rule.seconds / TICK_SECONDS)
                self._live(bucket).setdefault(request.ticket, end)
        return Admission.read(request.ticket, admitted=not full, readings=map(self._reading, request.buckets))

    def _full(self, bucket: Bucket, ticket: str) -> bool:
        live = self._live(bucket)
        return len(live) >= bucket.rule.limit and ticket not in live

    def _reading(self, bucket: Bucket) -> Reading:
        newest = sorted(self._live(bucket).values(), reverse=True)[: bucket.rule.limit]
        reset = (newest[-1] - self._now() + 1) * TICK_SECONDS if newest else 0.0
        return Reading(bucket.rule, bucket.rule.limit - len(newest), reset)

    def _live(self, bucket: Bucket) -> dict[str, int]:
        live = {ticket: end for ticket, end in self._ends.get(bucket.key, {}).items() if end >= self._now()}
        self._ends[bucket.key] = live
        return live

    def _now(self) -> int:
        return round(self._clock() / TICK_SECONDS)

    def _present(self) -> None:
        if self.away is not None:
            raise self.away
