"""What the actors need from outside, as Protocols; `service/adapters` has one file for each.

Every store method raises StoreUnavailable when nothing was done, and AnswerLost when that cannot be known.
Batches come back in the order of their arguments, each element an outcome or the Refusal of that element.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from actors.kit.mailbox import NotAccepted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from actors.domain.code import CodeId
    from actors.domain.email_address import EmailAddress
    from actors.domain.errors import Refusal
    from actors.domain.user import Account
    from actors.domain.windows import Admission, Bucket


class StoreUnavailable(NotAccepted):
    """The database is away and nothing was done: safe to repeat after `retry_after` seconds."""


@dataclass(frozen=True, slots=True)
class IdempotencyClaim:
    """The caller's right to bind a key: its digest and the number that proves the claim."""

    digest: bytes = field(repr=False)
    claim: UUID


@dataclass(frozen=True, slots=True)
class NewAccount:
    """A pending account to add, with its first code and the mail that is owed; ids are made by the caller.

    Repeating the same `registration` changes nothing and gives the same outcome.
    """

    id: UUID
    registration: UUID
    email: EmailAddress = field(repr=False)
    password_hash: bytes = field(repr=False)
    locale: str
    code_id: CodeId
    mail_id: UUID
    traceparent: str | None = None
    idempotency: IdempotencyClaim | None = None


@dataclass(frozen=True, slots=True)
class Registered:
    """A registration that stands: the account and what its status address is derived from."""

    id: UUID
    registration: UUID
    created_at: datetime
    mail_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Redemption:
    """One try to activate: the codes that were live when looked up, and whether one of them was typed.

    Counts an attempt on each named code that is still live unless `hit` names the one that was typed. A repeat
    after a lost answer hears the same where it hit, by `redeem_id`, and costs another attempt where it missed.
    """

    account: UUID
    password_hash: bytes = field(repr=False)
    live: tuple[CodeId, ...]
    hit: CodeId | None
    redeem_id: UUID


@dataclass(frozen=True, slots=True)
class Redeemed:
    """The account is active since `activated_at`."""

    activated_at: datetime


@dataclass(frozen=True, slots=True)
class Missed:
    """The attempt was counted; `attempts_left` of the best live code remain."""

    attempts_left: int


@dataclass(frozen=True, slots=True)
class NewCode:
    """A fresh code for a pending account whose password was right, with the mail that is owed."""

    account: UUID
    password_hash: bytes = field(repr=False)
    code_id: CodeId
    mail_id: UUID
    locale: str | None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Resent:
    """A new code is on its way: seconds until another can be had, and how many more today."""

    mail_id: UUID
    resend_in: float
    codes_left_today: int | None


class Accounts(Protocol):
    """The accounts, in the one place that decides every race."""

    async def find(self, email_keys: Sequence[str]) -> list[Account | None]:
        """Return the account of each address, or None."""
        ...

    async def find_registrations(self, registrations: Sequence[UUID]) -> list[Account | None]:
        """Return the account that each registration made, unless another registration has replaced it."""
        ...

    async def register(self, accounts: Sequence[NewAccount]) -> list[Registered | Refusal]:
        """Add each account or replace a pending one whose code is dead; EmailTaken or CodesExhausted otherwise.

        RequestInProgress when the claim that an account names is not, or no longer, its key's.
        """
        ...


class Registrations(Protocol):
    """The registrations under ENUMERATION=strict: any number of an address, each answering for itself alone.

    At most one holds its address: the account. The others are shadows, whose codes are silent and whose mails are
    never sent, but for one notice a day to the holder.
    """

    async def find_all(self, email_keys: Sequence[str]) -> list[tuple[Account, ...]]:
        """Return the registrations of each address, an active account first, then the oldest."""
        ...

    async def enter(self, accounts: Sequence[NewAccount]) -> list[Registered | Refusal]:
        """Add each registration, or give the one with its address and password a new code if its own is dead.

        RequestInProgress when the claim that a registration names is not, or no longer, its key's.
        """
        ...


class Codes(Protocol):
    """The accounts' codes and owed mails, in the same place."""

    async def redeem(self, tries: Sequence[Redemption]) -> list[Redeemed | Missed | None]:
        """Decide each try in one statement; None when nothing matched any more: look again and say why."""
        ...

    async def issue(self, codes: Sequence[NewCode]) -> list[Resent | None]:
        """Give each pending account a new code within its budget and cool-down; None as in redeem."""
        ...


@dataclass(frozen=True, slots=True)
class KeyTaken:
    """What a claimed idempotency key turned out to be bound to; `registered` is None while the first one runs."""

    same_body: bool
    registered: Registered | None


class IdempotencyKeys(Protocol):
    """Keys of clients, as digests, each bound to one body and one outcome for a day."""

    async def claim(self, claim: IdempotencyClaim, body_digest: bytes) -> KeyTaken | None:
        """Take the key for some seconds; None means that it is the caller's now."""
        ...

    async def renew(self, claims: Sequence[IdempotencyClaim]) -> None:
        """Keep the keys for as long again; one that somebody else has taken over stays theirs."""
        ...

    async def release(self, claim: IdempotencyClaim) -> bool:
        """Give an unbound key back; a bound one stays. False when it was not, or no longer, the caller's to give."""
        ...


class Windows(Protocol):
    """Sliding windows shared by all workers and machines."""

    async def decide(self, asked: Sequence[WindowRequest]) -> list[Admission]:
        """Decide each request atomically, in order; raises StoreUnavailable when the store is away."""
        ...

    async def give_back(self, given: Sequence[tuple[tuple[Bucket, ...], str]]) -> None:
        """Remove what a ticket counted in its buckets."""
        ...


@dataclass(frozen=True, slots=True)
class WindowRequest:
    """Buckets to decide over as one; `count` False only looks. `ticket` is unique and made by the caller."""

    buckets: tuple[Bucket, ...]
    count: bool
    ticket: str


class Hashing(Protocol):
    """Password hashes in threads; each call but `setting` blocks one of them for a quarter of a second at cost 12."""

    def setting(self, salt: bytes) -> bytes:
        """Return what `hash_like` takes to hash with these 16 bytes of salt, at the present cost."""
        ...

    async def hash_like(self, secret: bytes, setting: bytes) -> bytes:
        """Return the `$2b$` hash with the salt and the cost of `setting`, which may be another hash; b"" if corrupt."""
        ...

    async def hash(self, secret: bytes) -> bytes:
        """Return a fresh `$2b$` hash of at most 72 bytes."""
        ...

    async def check(self, secret: bytes, hashed: bytes) -> bool:
        """Return whether the secret made the hash; a corrupt hash is a failed check."""
        ...


class AddressReader(Protocol):
    """Turns text into an address that mail can be sent to."""

    def read(self, text: str) -> EmailAddress:
        """Return the address; raises InvalidEmail."""
        ...
