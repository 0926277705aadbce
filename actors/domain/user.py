"""An account with its code mails, and what can be said about them at one moment of the database's clock.

A code travels in exactly one mail, and a code mail carries exactly one code: the code is derived from the mail's id.

A code mail is *live* while it belongs to the account's current registration, is queued, sending, accepted or delivered,
has not expired and has guesses left. An account is *held* while it is active, or one of its code mails is live, or is
owed with guesses left, however old: in a long outage nobody may take an address over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from actors.domain.mail import ARRIVING, OWED, MailState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from actors.domain.rate_limit import Rule

DAY_SECONDS = 86400
LOOKS = 8  # an account that changes under so many looks in a row is being played with


class State(StrEnum):
    """Where a registration stands, for its owner."""

    QUEUED = "queued"
    SENDING = "sending"
    ACCEPTED = "accepted"  # the mail server has it: the code's minute runs
    DELIVERED = "delivered"
    EXPIRED = "expired"
    EXHAUSTED = "exhausted"
    UNDELIVERABLE = "undeliverable"
    ACTIVATED = "activated"


@dataclass(frozen=True, slots=True)
class CodePolicy:
    """What the operator allows.

    Wrong guesses a code, its seconds after its mail is accepted and at most, the seconds between two codes, and the
    codes an address may have in each window.
    """

    attempts: int
    ttl_seconds: int
    max_age_seconds: int
    cooldown_seconds: int
    budgets: tuple[Rule, ...]

    def budget_wait(self, ages: Sequence[float]) -> float:
        """Return the seconds until the budgets allow another code than those of these ages, the youngest first."""
        waits = [rule.seconds - ages[rule.limit - 1] for rule in self.budgets if len(ages) >= rule.limit]
        return max([0.0, *waits])

    def wait(self, ages: Sequence[float]) -> float:
        """Return the seconds until another code can be had; 0 is now."""
        cooldown = self.cooldown_seconds - ages[0] if ages else 0.0
        return max(cooldown, self.budget_wait(ages))

    def codes_left_today(self, ages: Sequence[float]) -> int | None:
        """Return how many codes the tightest budget of a day still allows; None without such a budget."""
        issued = sum(1 for age in ages if age < DAY_SECONDS)
        left = [max(0, rule.limit - issued) for rule in self.budgets if rule.seconds == DAY_SECONDS]
        return min(left, default=None)


@dataclass(frozen=True, slots=True)
class CodeMail:
    """One code mail of an account, and so one code.

    `number` orders the mails of an account. `expires_at` is the hard cap until the mail is accepted, then the end of
    the code's minute. `counted` is False for a reissue, which uses up no budget.
    """

    id: UUID
    registration: int
    number: int
    key_id: str
    state: MailState
    created_at: datetime
    accepted_at: datetime | None
    expires_at: datetime
    guesses: int
    counted: bool


@dataclass(frozen=True, slots=True)
class Account:
    """One row of accounts with its code mails, the newest first, read together with the database's time `read_at`.

    `mails` holds the code mails of the current registration, and those of earlier ones from the last day. `version`
    changes with every issue of a mail: a statement that names it fails when the account has changed since.
    `noticed_at` is when the last notice of the last day was owed. Times are aware and in UTC.
    """

    id: UUID
    email: str = field(repr=False)
    email_key: str = field(repr=False)
    password_hash: bytes = field(repr=False)
    locale: str
    created_at: datetime
    registration: int
    registered_at: datetime
    activated_at: datetime | None
    version: int
    mails: Sequence[CodeMail]
    noticed_at: datetime | None
    read_at: datetime

    @property
    def is_activated(self) -> bool:
        """Whether a code was redeemed."""
        return self.activated_at is not None

    def current_mails(self) -> list[CodeMail]:
        """Return the code mails of the current registration, the newest first."""
        return [mail for mail in self.mails if mail.registration == self.registration]

    def newest_mail(self) -> CodeMail | None:
        """Return the newest code mail of the current registration, or None when it was purged."""
        return next(iter(self.current_mails()), None)

    def live_mails(self, policy: CodePolicy) -> list[CodeMail]:
        """Return the mails whose codes would activate the account now, the newest first."""
        usable = [] if self.is_activated else self._usable_mails(policy)
        return [mail for mail in usable if mail.state in ARRIVING and mail.expires_at > self.read_at]

    def _usable_mails(self, policy: CodePolicy) -> list[CodeMail]:
        """Return the mails of the current registration whose codes have guesses left."""
        return [mail for mail in self.current_mails() if mail.guesses < policy.attempts]

    def superseded_mails(self) -> list[CodeMail]:
        """Return the mails whose codes a newer one replaced, the newest first."""
        return [mail for mail in self.current_mails() if mail.state is MailState.SUPERSEDED]

    def is_held(self, policy: CodePolicy) -> bool:
        """Return whether the address is taken."""
        owed = any(mail.state in OWED for mail in self._usable_mails(policy))
        return self.is_activated or owed or bool(self.live_mails(policy))

    def state(self, policy: CodePolicy) -> State:
        """Return where the registration stands, by its newest mail."""
        if self.is_activated:
            return State.ACTIVATED
        newest = self.newest_mail()
        if newest is None:  # purged, a month later
            return State.EXPIRED
        if newest.guesses >= policy.attempts:
            return State.EXHAUSTED
        if newest.state is MailState.DEAD:
            return State.UNDELIVERABLE
        expired = newest.expires_at <= self.read_at and newest.state not in OWED
        return State.EXPIRED if expired or newest.state is MailState.SUPERSEDED else State(newest.state.value)

    def attempts_left(self, policy: CodePolicy) -> int:
        """Return how many wrong attempts the best live code still bears."""
        return max((policy.attempts - mail.guesses for mail in self.live_mails(policy)), default=0)

    def code_expires_in(self) -> float | None:
        """Return the seconds the newest code has left, or None until its mail is accepted."""
        newest = self.newest_mail()
        if newest is None or newest.accepted_at is None or self.is_activated:
            return None
        return max(0.0, (newest.expires_at - self.read_at).total_seconds())

    def code_ages(self) -> list[float]:
        """Return the age in seconds of each code that counts in the budgets, the youngest first."""
        return sorted((self.read_at - mail.created_at).total_seconds() for mail in self.mails if mail.counted)
