"""Idempotency keys in memory, on a clock that the test holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from actors.ports import KeyTaken, Registered

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from actors.ports import IdempotencyClaim
    from tests.fakes.clock import FakeClock

CLAIMED = timedelta(seconds=3)
KEPT = timedelta(hours=24)


@dataclass(slots=True)
class Row:
    """One key: whose it is, until when, and what it is bound to."""

    body_digest: bytes
    claim: UUID
    claimed_until: datetime
    expires_at: datetime
    registered: Registered | None = None


class FakeIdempotencyKeys:
    """The IdempotencyKeys port."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._rows: dict[bytes, Row] = {}
        self.deaf: Exception | None = None  # raised by every release and renewal

    async def claim(self, claim: IdempotencyClaim, body_digest: bytes) -> KeyTaken | None:
        """Take the key for some seconds; None means that it is the caller's now."""
        now = self._clock.now
        row = self._rows.get(claim.digest)
        if row is not None and not self._free(row, claim):
            return KeyTaken(row.body_digest == body_digest, row.registered)
        self._rows[claim.digest] = Row(body_digest, claim.claim, now + CLAIMED, now + KEPT)
        return None

    def _free(self, row: Row, claim: IdempotencyClaim) -> bool:
        now = self._clock.now
        unbound = row.registered is None and (row.claimed_until <= now or row.claim == claim.claim)
        return row.expires_at <= now or unbound

    async def renew(self, claims: Sequence[IdempotencyClaim]) -> None:
        """Keep the keys for as long again; one that somebody else has taken over stays theirs."""
        if self.deaf is not None:
            raise self.deaf
        for claim in claims:
            if self.holds(claim) and self._rows[claim.digest].registered is None:
                self._rows[claim.digest].claimed_until = self._clock.now + CLAIMED

    async def release(self, claim: IdempotencyClaim) -> bool:
        """Give an unbound key back; a bound one stays. False when it was not, or no longer, the caller's to give."""
        if self.deaf is not None:
            raise self.deaf
        if not self.holds(claim) or self._rows[claim.digest].registered is not None:
            return False
        del self._rows[claim.digest]
        return True

    def holds(self, claim: IdempotencyClaim) -> bool:
        """Return whether the key is this claim's."""
        row = self._rows.get(claim.digest)
        return row is not None and row.claim == claim.claim

    def bind(self, claim: IdempotencyClaim, registered: Registered) -> None:
        """Bind the key to what was registered, as the registration's own transaction does."""
        self._rows[claim.digest].registered = Registered(registered.id, registered.registration, registered.created_at)
