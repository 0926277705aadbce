"""An account, its code and what can be said about them at one moment of the database's clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, assert_never

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from actors.domain.code import CodeId


class State(StrEnum):
    """Where a registration stands, for its owner."""

    QUEUED = "queued"  # a mail is owed
    SENDING = "sending"
    ACCEPTED = "accepted"  # the mail server has it: the code's minute runs
    DELIVERED = "delivered"  # a provider says that it arrived
    EXPIRED = "expired"
    EXHAUSTED = "exhausted"
    UNDELIVERABLE = "undeliverable"
    ACTIVATED = "activated"


class CodeMail(StrEnum):
    """What is known of the mail that carries the current code."""

    OWED = "owed"
    SENDING = "sending"
    ACCEPTED = "accepted"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Code:
    """One live slot of an account: the code's id and what is left of it; `expires_at` is by the database's clock."""

    id: CodeId
    expires_at: datetime
    attempts: int


@dataclass(frozen=True, slots=True)
class Account:
    """One row of users, read together with the database's time `read_at`; times are aware and in UTC.

    `old_code` is the code before `code`, alive until the newer one's mail is accepted; `superseded` are the dead
    ones before. `resend_at` is when the next code can be had by the cool-down and by the address' budget.
    """

    id: UUID
    email: str = field(repr=False)
    email_key: str = field(repr=False)
    password_hash: bytes = field(repr=False)
    locale: str
    created_at: datetime
    registration: UUID
    registered_at: datetime
    activated_at: datetime | None
    code: Code
    code_mail: CodeMail
    accepted_at: datetime | None
    old_code: Code | None
    superseded: tuple[CodeId, ...]
    resend_at: datetime
    codes_left_today: int | None
    read_at: datetime

    def live_codes(self, attempts_allowed: int) -> list[Code]:
        """Return the codes that would activate the account now, the newest first."""
        if self.activated_at is not None:
            return []
        slots = [self.code, self.old_code]
        return [slot for slot in slots if slot and slot.expires_at > self.read_at and slot.attempts < attempts_allowed]

    def state(self, attempts_allowed: int) -> State:
        """Return where the registration stands."""
        if self.activated_at is not None:
            return State.ACTIVATED
        if self.code.attempts >= attempts_allowed:
            return State.EXHAUSTED
        return self._by_mail()

    def _by_mail(self) -> State:
        match self.code_mail:
            case CodeMail.OWED:
                return State.QUEUED
            case CodeMail.SENDING:
                return State.SENDING
            case CodeMail.DEAD:
                return State.UNDELIVERABLE
            case CodeMail.ACCEPTED | CodeMail.DELIVERED:
                if self.code.expires_at <= self.read_at:
                    return State.EXPIRED
                return State(self.code_mail.value)
            case _:
                assert_never(self.code_mail)

    def attempts_left(self, attempts_allowed: int) -> int:
        """Return how many wrong attempts the best live code still bears."""
        return max((attempts_allowed - code.attempts for code in self.live_codes(attempts_allowed)), default=0)

    def resend_in(self) -> float:
        """Return the seconds until the next code can be had; 0 is now."""
        return max(0.0, (self.resend_at - self.read_at).total_seconds())

    def code_expires_in(self) -> float | None:
        """Return the seconds the current code has left, or None until its mail is accepted."""
        if self.accepted_at is None or self.activated_at is not None:
            return None
        return max(0.0, (self.code.expires_at - self.read_at).total_seconds())
