"""The limits of one request: which windows it counts in, what they say, and how a use is given back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import anyio

from actors.domain.errors import CodesExhausted, RateLimited
from actors.domain.rate_limit import Admission, Bucket
from actors.ports import Admit
from actors.rate_limiter import GiveBack, count

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from actors.domain.code import Keyring
    from actors.domain.rate_limit import Reading, Rule
    from actors.kit.mailbox import Address

REMEMBERED_SECONDS = 1.0  # how long a full window is not asked again: a use given back meanwhile is seen after it
MOST_REMEMBERED = 1024  # clients; of more, those that were refused first are asked again

UNLIMITED = Admission(admitted=True, retry_after=0.0, readings=(), ticket="")


@dataclass(slots=True)
class Client:
    """Who asks, and what the flows note for the answer.

    `networks` are the limit keys of the client's address with their multipliers: ("192.0.2.7", 1), or for IPv6
    ("2001:db8:1:2::/64", 1) and ("2001:db8:1::/48", 4). `readings` collects what the limits say. `hashed_at` is when
    its password hash ended, on the clock of the event loop; `proven` is True when the password was right.
    """

    networks: tuple[tuple[str, int], ...] = field(repr=False)
    traceparent: str | None = None
    readings: list[Reading] = field(default_factory=list)
    hashed_at: float = 0.0
    proven: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits in force; None is a limit that is off."""

    register: Rule | None
    activate: Rule | None
    password: Rule | None
    password_client: Rule | None
    basic: Rule | None
    codes_client: Rule | None


class Reservation:
    """The uses that a request was admitted for; they stay counted unless they are given back."""

    def __init__(self, limiter: Address, ticket: str, client: tuple[Bucket, ...], code: tuple[Bucket, ...]) -> None:
        self._limiter = limiter
        self._ticket = ticket
        self._client = client
        self._code = code

    def give_back(self, *, code_only: bool = False) -> None:
        """Give everything back: the request changed nothing, through no fault of the client; or the code alone."""
        buckets = self._code if code_only else self._client + self._code
        if buckets:
            self._limiter.offer(GiveBack(buckets, self._ticket))


class ClientLimits:
    """Asks the RateLimiter on behalf of clients, and notes what each limit says in `Client.readings`.

    Full windows raise RateLimited, or CodesExhausted where codes are counted.
    """

    def __init__(self, limiter: Address, limits: Limits, keyring: Keyring, counted: Counter[str]) -> None:
        self._limiter = limiter
        self._limits = limits
        self._keyring = keyring
        self._counted = counted
        self._refused: dict[tuple[tuple[str, int], ...], tuple[float, Admission]] = {}  # by networks: when, and how

    def expect_registration(self, client: Client) -> None:
        """Raise RateLimited for a client whose window of registrations was full a moment ago; asks nobody."""
        if client.networks not in self._refused:
            return
        refused_at, admission = self._refused[client.networks]
        passed = anyio.current_time() - refused_at
        if passed >= min(REMEMBERED_SECONDS, admission.retry_after):
            del self._refused[client.networks]
            return
        client.readings.extend(
            replace(reading, reset_seconds=reading.reset_seconds - passed) for reading in admission.readings
        )
        count(self._counted, admission)
        raise RateLimited(admission.retry_after - passed)

    async def registration(self, client: Client, email_key: str, *, code: bool) -> Reservation:
        """Reserve a registration of this client and, with `code`, a code of it for this address: both or neither."""
        tries = of_client(self._limits.register, client)
        codes = self._codes(client, email_key) if code else ()
        admission = await self._ask(client, tries + codes)
        if not admission.admitted:
            readings = admission.readings[: len(tries)]
            if all(reading.remaining for reading in readings):
                raise CodesExhausted(admission.retry_after)
            self._remember(client, replace(admission, readings=readings))
            raise RateLimited(admission.retry_after)
        del client.readings[len(client.readings) - len(codes) :]  # headers speak of registrations until codes are short
        return Reservation(self._limiter, admission.ticket, tries, codes)

    def _remember(self, client: Client, admission: Admission) -> None:
        self._refused.pop(client.networks, None)  # the newest stand at the end
        if len(self._refused) >= MOST_REMEMBERED:
            del self._refused[next(iter(self._refused))]
        self._refused[client.networks] = anyio.current_time(), admission

    async def code(self, client: Client, email_key: str) -> Reservation:
        """Reserve a code of this client for this address."""
        codes = self._codes(client, email_key)
        admission = await self._ask(client, codes)
        if not admission.admitted:
            raise CodesExhausted(admission.retry_after)
        return Reservation(self._limiter, admission.ticket, (), codes)

    async def code_wait(self, client: Client, email_key: str) -> float:
        """Return the seconds until this client can have a code of this address again, 0 for now; counts nothing."""
        return (await self._ask(client, self._codes(client, email_key), count=False)).retry_after

    def guesses(self, client: Client, email_key: str) -> tuple[Bucket, ...]:
        """Return the windows that count this client's wrong passwords."""
        pair = self._of_pair(self._limits.password, client, email_key)
        return pair + of_client(self._limits.password_client, client)

    async def check_guesses(self, client: Client, guesses: tuple[Bucket, ...]) -> None:
        """Refuse a client whose windows of wrong passwords are full; counts nothing."""
        await self._admit(client, guesses, count=False)

    async def read_guesses(self, client: Client, guesses: tuple[Bucket, ...]) -> None:
        """Note how the windows stand after a wrong password, for the headers."""
        await self._ask(client, guesses, count=False)

    async def count_guess(self, client: Client, guesses: tuple[Bucket, ...]) -> None:
        """Count a call as if its password had been wrong."""
        for bucket in guesses:  # one by one: a full window must not keep the others from counting
            await self._ask(client, (bucket,))

    async def activation(self, client: Client, email_key: str) -> None:
        """Count an activation of an address whose password was right."""
        await self._admit(client, self._of_address(self._limits.activate, email_key))

    async def basic_call(self, client: Client, email_key: str) -> None:
        """Count another call of an address whose password was right."""
        await self._admit(client, self._of_address(self._limits.basic, email_key))

    def _codes(self, client: Client, email_key: str) -> tuple[Bucket, ...]:
        return self._of_pair(self._limits.codes_client, client, email_key)

    def _of_address(self, rule: Rule | None, email_key: str) -> tuple[Bucket, ...]:
        return (Bucket(rule, self._keyring.subject(email_key)),) if rule else ()

    def _of_pair(self, rule: Rule | None, client: Client, email_key: str) -> tuple[Bucket, ...]:
        return of_client(rule, client, lambda network: self._keyring.subject(network, email_key))

    async def _admit(self, client: Client, buckets: tuple[Bucket, ...], *, count: bool = True) -> None:
        admission = await self._ask(client, buckets, count=count)
        if not admission.admitted:
            raise RateLimited(admission.retry_after)

    async def _ask(self, client: Client, buckets: tuple[Bucket, ...], *, count: bool = True) -> Admission:
        if not buckets:  # every limit that would apply is off
            return UNLIMITED
        admission = await self._limiter.ask(Admit(buckets, count))
        client.readings.extend(admission.readings)
        return admission


def of_client(rule: Rule | None, client: Client, subject: Callable[[str], str] = str) -> tuple[Bucket, ...]:
    """Return a rule's windows for the client: one for each of its networks, none for a limit that is off."""
    if rule is None:
        return ()
    return tuple(
        Bucket(replace(rule, limit=rule.limit * factor), subject(network)) for network, factor in client.networks
    )
