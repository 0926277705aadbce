"""The flows: register, activate, resend, status, over the actors. One method is one thing a client can want."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from actors.domain.user import State
    from actors.domain.windows import Reading, Rule


@dataclass(slots=True)
class Visit:
    """One request's circumstances, and what the flows note for its answer's headers.

    `networks` are the client address' limit keys with their multipliers: ("192.0.2.7", 1), or for IPv6
    ("2001:db8:1:2::/64", 1) and ("2001:db8:1::/48", 4). `readings` collects what the limits say.
    """

    networks: tuple[tuple[str, int], ...] = field(repr=False)
    traceparent: str | None = None
    readings: list[Reading] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Form:
    """What a person sends to register; `idempotency_key` as in the header, `locale` None to be chosen."""

    email: str = field(repr=False)
    password: str = field(repr=False)
    locale: str = "en"
    idempotency_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What Basic auth carries, as text; an address that cannot be one is an unknown one."""

    email: str = field(repr=False)
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Registration:
    """A registration that stands; `status_token` ends its status address."""

    id: UUID
    email: str = field(repr=False)
    created_at: datetime
    status_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Activation:
    """An account that is active now."""

    email: str = field(repr=False)
    activated_at: datetime


@dataclass(frozen=True, slots=True)
class Resend:
    """A new code is on its way; seconds until another can be had."""

    email: str = field(repr=False)
    resend_in: float
    codes_left_today: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a registration stands; seconds, None where nothing is counted yet."""

    state: State
    code_expires_in: float | None
    attempts_left: int
    resend_in: float
    email: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Profile:
    """An account as its owner sees it."""

    id: UUID
    email: str = field(repr=False)
    is_activated: bool
    created_at: datetime
    activated_at: datetime | None


@dataclass(frozen=True, slots=True)
class Limits:
    """The rules in force; None is a limit that is off."""

    register: Rule | None
    activate: Rule | None
    password: Rule | None
    password_client: Rule | None
    invalid: Rule | None
    basic: Rule | None
    codes_client: Rule | None


class SignUp:
    """The flows, built once per process over the addresses of the actors.

    Every method may raise a Refusal, or a MachineError when the machinery failed. A caller that is cancelled
    stops nothing that was accepted.
    """

    async def welcome(self, visit: Visit) -> None:
        """Turn away a client that keeps sending refused registrations: raises RateLimited. Call before reading."""
        raise NotImplementedError

    async def refused(self, visit: Visit) -> None:
        """Count a registration that was refused as malformed, invalid or too many."""
        raise NotImplementedError

    async def register(self, visit: Visit, form: Form) -> Registration:
        """Add a pending account and owe its mail."""
        raise NotImplementedError

    async def activate(self, visit: Visit, credentials: Credentials, code: str) -> Activation:
        """Redeem the typed code."""
        raise NotImplementedError

    async def resend(self, visit: Visit, credentials: Credentials) -> Resend:
        """Issue a new code."""
        raise NotImplementedError

    async def progress(self, visit: Visit, credentials: Credentials) -> Progress:
        """Say where the caller's registration stands."""
        raise NotImplementedError

    async def progress_of(self, visit: Visit, status_token: str) -> Progress:
        """Say where the registration of a status address stands; raises UnknownStatus."""
        raise NotImplementedError

    async def profile(self, visit: Visit, credentials: Credentials) -> Profile:
        """Return the caller's account."""
        raise NotImplementedError
