"""What goes into the flows and what comes out of them, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container
    from datetime import datetime
    from uuid import UUID

    from actors.access import Place
    from actors.domain.code import Keyring
    from actors.domain.user import State
    from actors.domain.windows import Reading, Rule
    from actors.ports import AddressReader


@dataclass(slots=True)
class Visit:
    """One request's circumstances, and what the flows note for its answer's headers.

    `networks` are the client address' limit keys with their multipliers: ("192.0.2.7", 1), or for IPv6
    ("2001:db8:1:2::/64", 1) and ("2001:db8:1::/48", 4). `readings` collects what the limits say. A registration may
    have its `place` already.
    """

    networks: tuple[tuple[str, int], ...] = field(repr=False)
    traceparent: str | None = None
    readings: list[Reading] = field(default_factory=list)
    place: Place | None = None

    def leave(self) -> None:
        """Give up its place, if it has one."""
        if self.place is not None:
            self.place.leave()


@dataclass(frozen=True, slots=True)
class Form:
    """What a person sends to register; `idempotency_key` as in the header."""

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
    """A new code is on its way; seconds until another can be had, and how many a day still allows (None: any)."""

    email: str = field(repr=False)
    resend_in: float
    codes_left_today: int | None


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
    """The limits in force; None is a limit that is off."""

    register: Rule | None
    activate: Rule | None
    password: Rule | None
    password_client: Rule | None
    invalid: Rule | None
    basic: Rule | None
    codes_client: Rule | None


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator has decided, and what reads and judges input."""

    keyring: Keyring
    attempts: int  # wrong ones that kill a code
    cooldown: int  # seconds between two codes
    addresses: AddressReader
    common_passwords: Container[str]
