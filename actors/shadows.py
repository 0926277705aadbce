"""Who a password belongs to under ENUMERATION=strict, where an address has any number of registrations.

All passwords of an address are hashed with one salt, so one bcrypt call tells which of its registrations a password
made. It costs the same for an address with one of them, with ten, and with none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.password_hasher import HashLike, Recognise
from actors.shadow_registry import Enter, FindAll

if TYPE_CHECKING:
    from actors.domain.code import Keyring
    from actors.domain.password import Password
    from actors.domain.user import Account
    from actors.domain.windows import Bucket
    from actors.kit.mailbox import Address
    from actors.password_counters import Passwords
    from actors.ports import NewAccount, Registered


class Shadows:
    """Hashes, recognises and registers over the ShadowRegistry and the PasswordHasher."""

    def __init__(self, registry: Address, hasher: Passwords, keyring: Keyring) -> None:
        self._registry = registry
        self._hasher = hasher
        self._keyring = keyring

    async def hash(self, email_key: str, password: Password) -> bytes:
        """Hash a new password as those of the address are hashed; NotAccepted when that would take too long."""
        known = await self._registry.ask(FindAll(email_key))
        like = known[0].password_hash if known else None
        return await self._hasher.ask(HashLike(password.secret, self._keyring.salt(email_key), like))

    async def recognise(self, email_key: str, password: Password, guesses: tuple[Bucket, ...]) -> Account | None:
        """Return the registration that the password made; a password of none is counted in `guesses`."""
        accounts = await self._registry.ask(FindAll(email_key))
        hashes = tuple(account.password_hash for account in accounts) if password.hashable else ()
        secret = password.secret if password.hashable else b""
        hashed = await self._hasher.ask(Recognise(secret, hashes, guesses))
        return next((account for account in accounts if account.password_hash == hashed), None)

    async def enter(self, account: NewAccount) -> Registered:
        """Register; no address is taken. Raises RequestInProgress as Enter does."""
        return await self._registry.ask(Enter(account))

    async def again(self, account: Account) -> Account | None:
        """Look a registration up once more."""
        accounts = await self._registry.ask(FindAll(account.email_key))
        return next((found for found in accounts if found.id == account.id), None)
