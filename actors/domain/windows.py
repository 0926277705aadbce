"""Limits in words: rules, what they count, and what a decision says."""

from __future__ import annotations

from dataclasses import dataclass, field


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
