"""E-mail and password to an account, by the same work for a known and an unknown address."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from actors.domain.errors import InvalidCredentials, InvalidEmail
from actors.domain.password import Password
from actors.password_hasher import Check
from actors.user_registry import Look

if TYPE_CHECKING:
    from actors.domain.user import Account
    from actors.kit.mailbox import Address
    from actors.limits import Client, ClientLimits
    from actors.ports import AddressReader


@dataclass(frozen=True, slots=True)
class Credentials:
    """What Basic auth carries, as text; text that is no address counts as an unknown address."""

    email: str = field(repr=False)
    password: str = field(repr=False)


@dataclass(kw_only=True, eq=False)
class Authentication:
    """Checks passwords over the UserRegistry and the PasswordHasher, inside the client's limits of wrong ones."""

    registry: Address
    hasher: Address
    limits: ClientLimits
    addresses: AddressReader

    def email_key(self, credentials: Credentials) -> str:
        """Return the key to look up; text that is no address has one that nobody can register."""
        try:
            return self.addresses.read(credentials.email).key
        except InvalidEmail:
            return f"\N{REPLACEMENT CHARACTER}{credentials.email}".replace("\0", "")

    async def authenticate(self, client: Client, credentials: Credentials) -> Account:
        """Return the account whose password this is.

        Raises InvalidCredentials for an unknown address as for a wrong password, after the same work, and counts it for
        the client: nobody at another address can use up a window of this one. Raises RateLimited, without a hash,
        when the client's windows are full.
        """
        email_key = self.email_key(credentials)
        guesses = self.limits.guesses(client, email_key)
        await self.limits.check_guesses(client, guesses)
        looked = await self.registry.ask(Look(email_key))
        account, password = looked.account, Password.typed(credentials.password)
        hashed = account.password_hash if account is not None and password.hashable else None
        secret = password.secret if password.hashable else b""
        right = await self.hasher.ask(Check(secret, hashed, guesses))
        client.hashed_at = anyio.current_time()
        if account is None or not right:
            await self.limits.read_guesses(client, guesses)  # what was read before does not know of this guess
            raise InvalidCredentials
        client.proven = True
        return account

    async def count_guess(self, client: Client, credentials: Credentials) -> None:
        """Count a call with the right password as if it had been wrong (strict mode)."""
        await self.limits.count_guess(client, self.limits.guesses(client, self.email_key(credentials)))
