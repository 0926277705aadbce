"""A mail from owed to accepted: its states, what is claimed for sending, and the retry delays."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

BACKOFF_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # the last repeats: a code for a minute wants an early retry
OWED_HOURS = 24  # after that nobody waits for the mail any more


class MailKind(StrEnum):
    """What a mail is about: it carries a code, or tells the owner of a taken address about a registration."""

    CODE = "code"
    NOTICE = "notice"


class MailState(StrEnum):
    """Where a mail stands."""

    QUEUED = "queued"
    SENDING = "sending"
    ACCEPTED = "accepted"  # the mail server has it: the code's minute runs
    DELIVERED = "delivered"  # a provider says that it arrived
    DEAD = "dead"
    SUPERSEDED = "superseded"  # a newer code replaced it


OWED = frozenset({MailState.QUEUED, MailState.SENDING})
ARRIVING = OWED | {MailState.ACCEPTED, MailState.DELIVERED}


@dataclass(frozen=True, slots=True)
class ClaimedMail:
    """A mail that this process may send until its lease ends; `fence` proves the claim when the outcome is written.

    `key_id` names the key that derives the code of a code mail. `life_left` is how many seconds of its code's cap were
    left when it was claimed, by the database's clock. `tries` counts this claim. `alone` asks for the mail to be tried
    with no other in hand: a worker died with it in hand before. `traceparent` is the W3C trace context of the request
    that owed it.
    """

    id: UUID
    fence: int
    tries: int
    kind: MailKind
    account: UUID
    key_id: str
    recipient: str = field(repr=False)
    locale: str
    life_left: float
    created_at: datetime
    alone: bool = False
    traceparent: str | None = None


class Outcome(StrEnum):
    """What became of a claimed mail."""

    ACCEPTED = "accepted"
    DEFERRED = "deferred"
    DEAD = "dead"
    PUT_BACK = "put back"  # not tried
    NOT_NEEDED = "not needed"  # redeemed or superseded meanwhile
    LOST = "lost"  # another worker has the claim


@dataclass(frozen=True, slots=True)
class Result:
    """An outcome with its reason; `error` is set only when the program, not a server, failed."""

    outcome: Outcome
    reason: str = ""
    retry_seconds: float = 0.0
    error: Exception | None = field(default=None, repr=False)


class Rejected(Exception):
    """The mail server will never accept this mail; `reason` is its reply without addresses."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Deferred(Exception):
    """The mail server did not accept the mail this time; `reason` as in Rejected.

    `retry_after` is how many seconds it asked for, if it did.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after


class ServerUnavailable(Deferred):
    """No mail can be sent to the server now: connecting, EHLO, STARTTLS, AUTH or MAIL FROM failed."""


def backoff(tries: int, chance: float) -> float:
    """Return the seconds before the try after the given one (1-based); `chance` in [0, 1) adds up to a quarter."""
    return BACKOFF_SECONDS[min(tries, len(BACKOFF_SECONDS)) - 1] * (1 + chance / 4)
