"""The mail's way from owed to accepted: states, outcomes and the back-off between attempts."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from actors.domain.code import CodeId

BACKOFF_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # the last repeats: a minute's code wants an early retry
OWED_HOURS = 24  # past it nobody waits for the mail any more


class MailKind(StrEnum):
    """What a mail is about: it carries a code, or tells the owner of a taken address of a registration.

    A silent one is never sent: it only takes its time, so that a shadow's state moves as an account's does.
    """

    CODE = "code"
    NOTICE = "notice"
    SILENT = "silent"


WRITTEN = (MailKind.CODE, MailKind.NOTICE)  # those that have words


class MailState(StrEnum):
    """Where a mail of the outbox stands."""

    QUEUED = "queued"
    SENDING = "sending"
    ACCEPTED = "accepted"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class ClaimedMail:
    """A mail that this process may send until its lease ends; `fence` proves the claim when the outcome is written.

    `code_id` names the code whose time the mail starts; only a mail of kind CODE carries it. `life_left` is the seconds
    that the code had left of its cap when the mail was claimed, by the database's clock; both may be None for a notice.
    `doomed` says of a silent mail that the last real one to its address was refused. `traceparent` is the W3C trace
    context of the request that owed it.
    """

    id: UUID
    fence: int
    attempt: int
    kind: MailKind
    account: UUID
    code_id: CodeId | None
    recipient: str = field(repr=False)
    locale: str
    life_left: float | None
    created_at: datetime
    traceparent: str | None = None
    doomed: bool = False


class Rejected(Exception):
    """The mail server will never take this mail; `reason` is its reply code and a class, without addresses."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Deferred(Exception):
    """The mail server did not take the mail this time; `reason` as in Rejected.

    `retry_after` is the seconds it asked for, if it did.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after


class Unreached(Deferred):
    """No connection could be had, so it says nothing about the mail: who connects again may bring it forward."""


def backoff(attempt: int, chance: float) -> float:
    """Return the seconds before the attempt after the given one (1-based); `chance` in [0, 1) adds up to a quarter."""
    return BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS)) - 1] * (1 + chance / 4)
