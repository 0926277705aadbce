"""What sign-up and delivery need from outside, as Protocols; `service/` has one adapter for each.

What a store decides in batches is asked of the actor in front of it in the same words: Register, Issue, Redeem and
Admit are messages of the actors.

Every store method raises StoreUnavailable when nothing was done, and AnswerLost when that cannot be known. Batches
come back in the order of their arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from actors.domain.rate_limit import Admission
from actors.kit.mailbox import Ask, NotAccepted

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from actors.domain.email_address import EmailAddress
    from actors.domain.mail import ClaimedMail, MailKind, Result
    from actors.domain.rate_limit import Bucket
    from actors.domain.user import Account


class StoreUnavailable(NotAccepted):
    """The store is away and nothing was done: safe to repeat after `retry_after` seconds."""


@dataclass(frozen=True, slots=True)
class KeyUse:
    """An idempotency key as it is stored: keyed digests of key and address, and of the body."""

    digest: bytes = field(repr=False)
    body_digest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an idempotency key was bound to: the body, and the registration that answered it.

    `registered` is None where the address was taken (strict mode).
    """

    body_digest: bytes = field(repr=False)
    registered: Registered | None


@dataclass(frozen=True, slots=True)
class NewMail:
    """A mail to owe, by the id that its code is derived from; ids are UUIDv7, made by the caller.

    Writing the same id again changes nothing and gives the same outcome. A code that is not `counted` uses up no budget
    and is no resend; `guesses` are those that were made at the code that it replaces.
    """

    id: UUID
    kind: MailKind
    key_id: str
    traceparent: str | None = None
    guesses: int = 0
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Registered:
    """A registration that stands: the account and which of its registrations this is."""

    account: UUID
    registration: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Register(Ask[Registered | None]):
    """Add a pending account, its first code and the mail that will carry it, or none of them.

    The UserRegistry raises EmailTaken when the address is held: active, or pending under a live code or a mail still
    owed; and CodesExhausted when the address has had its codes. In strict mode its answer is None instead, the
    idempotency key is bound, and the owner of an active address gets a notice.
    """

    id: UUID
    email: EmailAddress = field(repr=False)
    password_hash: bytes = field(repr=False)
    locale: str
    mail: NewMail
    key: KeyUse | None = None


@dataclass(frozen=True, slots=True)
class Issue(Ask[Registered | None]):
    """Owe one more mail to an account that is still at `version`; None when it has changed since, or is active.

    A code mail supersedes every older code mail that was never tried. With `take_over` the account, which nobody holds,
    starts that registration in the same statement. A notice supersedes nothing.
    """

    account: UUID
    version: int
    mail: NewMail
    take_over: Register | None = None


@dataclass(frozen=True, slots=True)
class Redeemed:
    """The account is active since `activated_at`."""

    activated_at: datetime


@dataclass(frozen=True, slots=True)
class Missed:
    """The guess was counted; `attempts_left` of the best live code remain."""

    attempts_left: int


@dataclass(frozen=True, slots=True)
class Redeem(Ask[Redeemed | Missed | None]):
    """Try to activate; None when the account has changed since it was looked up: look again and say why.

    `compared` are the live code mails whose codes were compared, `hit` the one that was typed, if any. A miss counts a
    guess on each of them. Nothing happens unless the account is pending, has this password hash and this registration,
    and `compared` covers all its live code mails.
    """

    account: UUID
    password_hash: bytes = field(repr=False)
    registration: int
    compared: tuple[UUID, ...]
    hit: UUID | None


class Accounts(Protocol):
    """The accounts with their codes and owed mails, in the one place that decides every race.

    No batch names one account or address twice; the actors see to that.
    """

    async def find(self, email_keys: Sequence[str]) -> list[Account | None]:
        """Return the account of each address, or None."""

    async def find_by_id(self, accounts: Sequence[UUID]) -> list[Account | None]:
        """Return each account, or None."""

    async def find_answers(self, digests: Collection[bytes]) -> Mapping[bytes, Answer]:
        """Return what the idempotency keys with these digests were bound to; unknown and expired ones are missing."""

    async def add(self, accounts: Sequence[Register]) -> list[Registered | None]:
        """Add each account with its mail, answer and count; None where the address has an account already."""

    async def issue(self, issues: Sequence[Issue]) -> list[Registered | None]:
        """Owe each mail (and take the account over); None where the account is no longer at that version, or active.

        A notice is owed to an active account too. A code mail counts as a resend, a take-over as a registration.
        """

    async def bind_taken(self, keys: Sequence[KeyUse]) -> None:
        """Bind keys that were answered without a registration (strict mode, a taken address)."""

    async def redeem(self, tries: Sequence[Redeem]) -> list[Redeemed | Missed | None]:
        """Decide each try in one statement; None when nothing matched any more: look again and say why."""


class Wakeups(Protocol):
    """Wakes the mail workers; a lost wake-up only costs the second until their next sweep."""

    async def wake(self, mails: Sequence[UUID]) -> None:
        """Tell the workers about owed mails; never raises."""


class MailQueue(Protocol):
    """The owed mails, as the mail workers see them."""

    async def claim(self, limit: int) -> list[ClaimedMail]:
        """Claim up to `limit` due mails, the longest due first: at most one code mail an account, under a lease.

        Mails that are owed for more than 24 hours, or that killed three workers while alone in hand, become dead
        instead; an owed mail whose guesses are used up or whose account is active becomes superseded.
        """

    async def reissue(self, mail: ClaimedMail, new: NewMail) -> ClaimedMail | None:
        """Replace a mail that is too old to leave by a new one, which is claimed instead; None when nobody needs it."""

    async def extend(self, mails: Sequence[ClaimedMail]) -> set[UUID]:
        """Renew the leases; return the ids that are still claimed by their fences."""

    async def accepted(self, mails: Sequence[ClaimedMail]) -> set[UUID]:
        """Write that the mail server accepted them, so their codes' minutes start now; return those still claimed.

        At most one code mail an account in one call.
        """

    async def settle(self, outcomes: Sequence[tuple[ClaimedMail, Result]]) -> None:
        """Write what became of mails that were not accepted, with the reasons.

        They are dead, or deferred: due again in `retry_seconds`, or put back: due at once, and the claim costs no try.
        """


class Transport(Protocol):
    """Sends mails to one mail server."""

    async def send(self, mail: ClaimedMail, code: str | None) -> None:
        """Return when the server has accepted the mail; raises Deferred, ServerUnavailable or Rejected."""


@dataclass(frozen=True, slots=True)
class Admit(Ask[Admission]):
    """Count one use in every bucket if each has room, else in none; with `count` False only look.

    A full window is an answer, not a refusal: `Admission.admitted` says which. The ticket is the message's own, so that
    handling it again after a crash counts nothing twice.
    """

    buckets: tuple[Bucket, ...]
    count: bool = True
    ticket: str = field(default_factory=lambda: uuid4().hex, repr=False)


class RateLimits(Protocol):
    """Sliding windows shared by all workers and machines."""

    async def decide(self, asked: Sequence[Admit]) -> list[Admission]:
        """Decide each request atomically, in order; raises StoreUnavailable when the store is away."""

    async def give_back(self, given: Sequence[tuple[tuple[Bucket, ...], str]]) -> None:
        """Remove what a ticket counted in its buckets."""


class Hashing(Protocol):
    """Password hashes on threads; each call keeps one of them busy for a quarter of a second at cost 12."""

    async def hash(self, secret: bytes) -> bytes:
        """Return a fresh `$2b$` hash of at most 72 bytes."""

    async def check(self, secret: bytes, hashed: bytes) -> bool:
        """Return whether the secret made the hash; a corrupt hash is a failed check."""


class AddressReader(Protocol):
    """Turns text into an address that mail can be sent to."""

    def read(self, text: str) -> EmailAddress:
        """Return the address; raises InvalidEmail."""
