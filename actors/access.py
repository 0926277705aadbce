"""Who may try what, how often: the limits around each flow, and the check of a password behind them.

The order on every call with a password is the same, known address or not: the client's limits, the look-up, one
bcrypt check (of a dummy for the unknown), then what the address' own limits say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from actors.domain.errors import CodesExhausted, InvalidCredentials, InvalidEmail, RateLimited
from actors.domain.password import Password
from actors.domain.windows import Bucket
from actors.password_hasher import Check, Hash
from actors.rate_limiter import Admit, GiveBack
from actors.user_registry import Find

if TYPE_CHECKING:
    from typing import Self

    from actors.domain.user import Account
    from actors.domain.windows import Admission, Rule
    from actors.forms import Credentials, Limits, Rules, Visit
    from actors.kit.mailbox import Address
    from actors.password_counters import Passwords
    from actors.shadows import Shadows


class Entry:
    """What a client was let in for; given back when the work could not be done."""

    def __init__(self, limiter: Address, ticket: str, client: tuple[Bucket, ...], code: tuple[Bucket, ...]) -> None:
        self._limiter = limiter
        self._ticket = ticket
        self._client = client
        self._code = code

    def give_back_code(self) -> None:
        """Give back the code that was not issued; the client's try stays counted."""
        self._give_back(self._code)

    def give_back_all(self) -> None:
        """Give everything back: the machinery failed, not the client."""
        self._give_back(self._client + self._code)

    def _give_back(self, buckets: tuple[Bucket, ...]) -> None:
        if buckets:
            self._limiter.offer(GiveBack(buckets, self._ticket))


class Place:
    """Room for one new hash, kept until `leave`: when the hash is asked for, or nobody will ask; may be left twice."""

    def __init__(self, coming: set[Place]) -> None:
        self._coming = coming
        self._left = anyio.Event()
        coming.add(self)

    def leave(self) -> None:
        """Make room."""
        self._coming.discard(self)
        self._left.set()

    async def left(self) -> None:
        """Wait until it is left."""
        await self._left.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class Access:
    """The limits and the password check, over the RateLimiter, the UserRegistry and the PasswordHasher.

    Full windows raise RateLimited, or CodesExhausted where codes are counted. What each limit says is noted in the
    visit's readings. `coming` are the places of those who have not asked for their hash yet.
    """

    def __init__(  # noqa: PLR0913 - each is one collaborator
        self,
        *,
        limiter: Address,
        registry: Address,
        hasher: Passwords,
        limits: Limits,
        rules: Rules,
        shadows: Shadows | None = None,
    ) -> None:
        self._limiter = limiter
        self._shadows = shadows
        self._registry = registry
        self._hasher = hasher
        self._limits = limits
        self._rules = rules
        self.coming: set[Place] = set()

    async def welcome(self, visit: Visit) -> None:
        """Turn away a client whose refused registrations fill their window, until its other one has room too."""
        wait = await self._wait(visit, of_client(self._limits.invalid, visit))
        if wait:
            raise RateLimited(max(wait, await self._wait(visit, of_client(self._limits.register, visit))))

    async def refused(self, visit: Visit) -> None:
        """Count a refused registration; raises RateLimited when the window is full already, which stays as it is."""
        await self._admit(visit, of_client(self._limits.invalid, visit))

    async def registration(self, visit: Visit, email_key: str) -> Entry:
        """Reserve a registration of this client and a code of this client for this address, both or neither."""
        client = of_client(self._limits.register, visit)
        code = self._pair(self._limits.codes_client, visit, email_key)
        admission = await self._ask(visit, client + code)
        if admission is not None and admission.admitted:  # the headers tell of registrations until codes are short
            del visit.readings[len(visit.readings) - len(code) :]
        elif admission is not None:
            full = [reading.rule.name for reading in admission.readings if reading.remaining == 0]
            registrations_full = self._limits.register is not None and self._limits.register.name in full
            raise (RateLimited if registrations_full else CodesExhausted)(admission.retry_after)
        return Entry(self._limiter, admission.ticket if admission else "", client, code)

    async def attempt(self, visit: Visit) -> None:
        """Count a registration of this client that asks for no code."""
        await self._admit(visit, of_client(self._limits.register, visit))

    async def code(self, visit: Visit, email_key: str) -> Entry:
        """Reserve a code of this client for this address."""
        code = self._pair(self._limits.codes_client, visit, email_key)
        admission = await self._ask(visit, code)
        if admission is not None and not admission.admitted:
            raise CodesExhausted(admission.retry_after)
        return Entry(self._limiter, admission.ticket if admission else "", (), code)

    async def code_wait(self, visit: Visit, email_key: str) -> float:
        """Return the seconds until this client can have a code of this address again, 0 for now; counts nothing."""
        return await self._wait(visit, self._pair(self._limits.codes_client, visit, email_key))

    async def activation(self, visit: Visit, account: Account) -> None:
        """Count an activation of an address whose password was right."""
        await self._admit(visit, self._account(self._limits.activate, account))

    async def basic_call(self, visit: Visit, account: Account) -> None:
        """Count another call of an address whose password was right."""
        await self._admit(visit, self._account(self._limits.basic, account))

    def place(self) -> Place:
        """Return a place of one that will ask for a new hash; raises NotAccepted, before anything is spent, without.

        Of a crowd that comes at once most are turned away here, not after each has been to the limiter and back.
        """
        self._hasher.expect_room(Hash(b""), len(self.coming))
        return Place(self.coming)

    async def hash(self, email_key: str, password: Password) -> bytes:
        """Hash a new password; NotAccepted when that would take too long."""
        if self._shadows is not None:
            return await self._shadows.hash(email_key, password)
        return await self._hasher.ask(Hash(password.secret))

    async def authenticate(self, visit: Visit, credentials: Credentials) -> Account:
        """Return the account whose password this is.

        Raises InvalidCredentials for an unknown address as for a wrong password, after the same work, and counts it
        for the client. Nobody at another address can use up a window of this one.
        """
        email_key = self._email_key(credentials.email)
        guesses = self._pair(self._limits.password, visit, email_key) + of_client(self._limits.password_client, visit)
        await self._admit(visit, guesses, count=False)
        password = Password.typed(credentials.password)
        if self._shadows is not None:
            account = await self._shadows.recognise(email_key, password, guesses)
        else:
            account = await self._checked(email_key, password, guesses)
        if account is None:
            await self._ask(visit, guesses, count=False)  # what was read before the check does not know of this guess
            raise InvalidCredentials
        return account

    async def _checked(self, email_key: str, password: Password, guesses: tuple[Bucket, ...]) -> Account | None:
        account = await self._registry.ask(Find(email_key))
        known = account is not None and password.hashable
        secret = password.secret if password.hashable else b""
        hashed = account.password_hash if account is not None and known else None
        return account if await self._hasher.ask(Check(secret, hashed, guesses)) else None

    def _email_key(self, text: str) -> str:
        """Return the key to look up; text that is no address has one that nobody can register."""
        try:
            return self._rules.addresses.read(text).key
        except InvalidEmail:
            return f"\N{REPLACEMENT CHARACTER}{text}".replace("\0", "")

    def _account(self, rule: Rule | None, account: Account) -> tuple[Bucket, ...]:
        """Count by address, or by registration where several of them must know nothing of each other."""
        name = account.email_key if self._shadows is None else str(account.id)
        return (Bucket(rule, self._rules.keyring.subject(name)),) if rule else ()

    def _pair(self, rule: Rule | None, visit: Visit, email_key: str) -> tuple[Bucket, ...]:
        subject = self._rules.keyring.subject
        return tuple(
            Bucket(replace(rule, limit=rule.limit * factor), subject(network, email_key))
            for network, factor in visit.networks
            if rule
        )

    async def _admit(self, visit: Visit, buckets: tuple[Bucket, ...], *, count: bool = True) -> None:
        admission = await self._ask(visit, buckets, count=count)
        if admission is not None and not admission.admitted:
            raise RateLimited(admission.retry_after)

    async def _wait(self, visit: Visit, buckets: tuple[Bucket, ...]) -> float:
        admission = await self._ask(visit, buckets, count=False)
        return admission.retry_after if admission is not None else 0.0

    async def _ask(self, visit: Visit, buckets: tuple[Bucket, ...], *, count: bool = True) -> Admission | None:
        if not buckets:
            return None
        admission = await self._limiter.ask(Admit(buckets, count))
        visit.readings.extend(admission.readings)
        return admission


def of_client(rule: Rule | None, visit: Visit) -> tuple[Bucket, ...]:
    """Return a rule's windows for the client: one for each of its networks, none for a limit that is off."""
    if rule is None:
        return ()
    return tuple(Bucket(replace(rule, limit=rule.limit * factor), network) for network, factor in visit.networks)
