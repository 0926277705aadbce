"""Rate limits: rules, what they count, and decisions.

A window is closed at both ends: a use counted at time t is free again after t + `seconds`, not at it, so no period of
that length, wherever it starts, holds more than `limit` uses.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

TICK_SECONDS = 1e-6  # the stores' clocks count microseconds: a window is over one of them after its end


@dataclass(frozen=True, slots=True)
class Rule:
    """At most `limit` within any `seconds`; `name` labels headers, keys and metrics."""

    name: str
    limit: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """One window of a rule: the subject it counts, as a client network or a keyed digest, never an e-mail address."""

    rule: Rule
    subject: str = field(repr=False)

    @property
    def key(self) -> str:
        """The bucket's name in every store: 128 bits of a digest, so it names no client and no two share a window.

        The limit is no part of it: a changed limit goes on with what was counted.
        """
        name = f"{self.subject}:{self.rule.name}:{self.rule.seconds}"
        return hashlib.sha256(name.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a client may still do: `remaining` of the rule's limit, and seconds until one more is free again."""

    rule: Rule
    remaining: int
    reset_seconds: float


@dataclass(frozen=True, slots=True)
class Admission:
    """The decision over some buckets at once: all of them counted, or none.

    `retry_after` is 0 when admitted; else waiting that many seconds is enough, if nobody else uses the windows.
    `ticket` names what was counted, to give it back.
    """

    admitted: bool
    retry_after: float
    readings: tuple[Reading, ...]
    ticket: str

    @classmethod
    def read(cls, ticket: str, *, admitted: bool, readings: Iterable[Reading]) -> Admission:
        """Return the decision that the readings tell: the fullest window says how long to wait."""
        seen = tuple(readings)
        waits = (reading.reset_seconds for reading in seen if reading.remaining == 0)
        return cls(admitted, 0.0 if admitted else max(waits, default=0.0), seen, ticket)


@dataclass(frozen=True, slots=True)
class Use:
    """What one store has counted, to be counted by another: it leaves the bucket of that key in `left_seconds`."""

    key: str
    ticket: str
    left_seconds: float
