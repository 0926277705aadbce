"""The flows: register, activate, resend and status. One method is one thing that a client can want."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, assert_never

import anyio

from actors.code_issuer import Wake
from actors.domain import errors
from actors.domain.mail import MailKind
from actors.domain.password import Password
from actors.domain.user import LOOKS
from actors.kit.mailbox import MachineError, NotAccepted
from actors.password_hasher import Hash
from actors.ports import Issue, KeyUse, Missed, NewMail, Redeem, Redeemed, Register
from actors.user_registry import FindRegistration, Look

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Container, Sequence
    from datetime import datetime
    from uuid import UUID

    from actors.authentication import Authentication, Credentials
    from actors.domain.code import Keyring
    from actors.domain.email_address import EmailAddress
    from actors.domain.user import Account, CodeMail, CodePolicy, State
    from actors.kit.mailbox import Address
    from actors.limits import Client, ClientLimits, Reservation
    from actors.ports import AddressReader, Answer, Registered

KEY = re.compile(r"[!-~]{1,64}")  # an Idempotency-Key: visible ASCII
STATUS_SECONDS = 86400  # a status address shows nothing after a day
REPEAT_SECONDS, REPEAT_LOOK_SECONDS = 3.0, 0.1  # how long a refused repeat looks for the first one's answer
UNIFORM_SECONDS = 0.1  # longer than the 99.9th percentile of what a strict answer writes after its hash


@dataclass(frozen=True, slots=True)
class Form:
    """What a person sends to register; `idempotency_key` as in the header."""

    email: str = field(repr=False)
    password: str = field(repr=False)
    locale: str = "en"
    idempotency_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Registration:
    """A registration that stands; `status_token` ends its status address."""

    id: UUID
    email: str = field(repr=False)
    created_at: datetime
    status_token: str = field(repr=False)


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


@dataclass(kw_only=True, eq=False)
class SignUp:
    """The flows, built once per process over the addresses of the actors.

    Every method may raise a Refusal, or a MachineError when the service failed. In `strict` mode
    (`ENUMERATION=strict`) register, resend and a failed activation answer alike for every address, at the same time
    after their hash.
    """

    registry: Address
    hasher: Address
    issuer: Address
    limits: ClientLimits
    authentication: Authentication
    keyring: Keyring
    policy: CodePolicy
    addresses: AddressReader
    common_passwords: Container[str]
    new_id: Callable[[], UUID]
    strict: bool = False

    # -- register -----------------------------------------------------------------------------------------------------

    def expect_registration(self, client: Client) -> None:
        """Refuse, before anything is read, a registration that would be refused for want of room or of tries."""
        self.hasher.expect_room(Hash)
        self.limits.expect_registration(client)

    async def register(self, client: Client, form: Form) -> Registration | None:
        """Add a pending account and owe its mail; None in strict mode, which never says what it did.

        With an idempotency key a repeat returns the first answer and uses nothing up. Of racing registrations of one
        address, the insert in UserRegistry.Register decides which one wins.
        """
        address = self.addresses.read(form.email)
        password = Password.typed(form.password)
        password.check_strength(address, self.common_passwords)
        keys = self._keys(form, address, password)
        looked = await self.registry.ask(Look(address.key, keys))
        if looked.answer is not None:
            return self._repeated(form, keys, looked.answer)
        reservation: Reservation | None = None
        try:
            held = self._is_held(looked.account)
            self.hasher.expect_room(Hash)  # rejects early: with no room for the hash, the limiter is never asked
            reservation = await self.limits.registration(client, address.key, code=not held)
            if held:
                raise errors.EmailTaken
            hashed = await self.hasher.ask(Hash(password.secret))
            client.hashed_at = anyio.current_time()
            mail = self._new_mail(client)
            key = keys[0] if keys else None
            registered = await self.registry.ask(Register(self.new_id(), address, hashed, form.locale, mail, key))
        except (errors.Refusal, MachineError) as error:
            taken = isinstance(error, errors.EmailTaken)
            answer = await self._first_answer(keys, wait=not taken)
            if reservation is not None:  # a taken address keeps the client's try
                reservation.give_back(code_only=taken and answer is None)
            if answer is None:
                raise
            return self._repeated(form, keys, answer)
        self.issuer.offer(Wake(mail.id))
        if self.strict or registered is None:
            await _uniform_time(client)
            return None
        return self._registration(form, registered)

    def _is_held(self, account: Account | None) -> bool:
        """Return whether the address is taken, to spare a hash: the statement decides. Raises CodesExhausted.

        In strict mode nothing is refused early, and nothing is spared.
        """
        if account is None or self.strict:
            return False
        if account.is_held(self.policy):
            return True
        if wait := self.policy.budget_wait(account.code_ages()):
            raise errors.CodesExhausted(wait)
        return False

    async def _first_answer(self, keys: tuple[KeyUse, ...], *, wait: bool) -> Answer | None:
        """Look for the answer of the first request with the same idempotency key.

        With `wait` for some seconds: a full limit or queue may be full of that request's copies.
        """
        end = anyio.current_time() + (REPEAT_SECONDS if wait else 0)
        while keys:
            try:
                looked = await self.registry.ask(Look("", keys))
            except MachineError:
                return None
            if looked.answer is not None or anyio.current_time() >= end:
                return looked.answer
            await anyio.sleep(REPEAT_LOOK_SECONDS)
        return None

    def _keys(self, form: Form, address: EmailAddress, password: Password) -> tuple[KeyUse, ...]:
        """Return the idempotency key under each configured key, the signing one's first; nothing without one."""
        if form.idempotency_key is None:
            return ()
        if not KEY.fullmatch(form.idempotency_key):
            raise errors.IdempotencyKeyInvalid
        digests = self.keyring.idempotency_digests(form.idempotency_key, address.key)
        body_digests = self.keyring.idempotency_digests(form.email, password.secret.decode(), form.locale)
        return tuple(map(KeyUse, digests, body_digests))

    def _repeated(self, form: Form, keys: tuple[KeyUse, ...], answer: Answer) -> Registration | None:
        if answer.body_digest not in {key.body_digest for key in keys}:
            raise errors.IdempotencyKeyReused
        return None if self.strict or answer.registered is None else self._registration(form, answer.registered)

    def _registration(self, form: Form, registered: Registered) -> Registration:
        token = self.keyring.status_token(registered.account, registered.registration)
        return Registration(registered.account, form.email, registered.created_at, token)

    def _new_mail(self, client: Client) -> NewMail:
        return NewMail(self.new_id(), MailKind.CODE, self.keyring.signing, client.traceparent)

    # -- activate -----------------------------------------------------------------------------------------------------

    async def activate(self, client: Client, credentials: Credentials, code: str) -> Account:
        """Redeem the code, given as its digits, and return the account as it is then.

        Of parallel calls with the right code one succeeds and the others get AlreadyActivated. A wrong code costs an
        attempt, a superseded or a malformed one does not. In strict mode every failure is ActivationFailed.
        """
        async with self._uniform_failure(client, credentials, errors.ActivationFailed):
            account = await self.authentication.authenticate(client, credentials)
            if not account.is_activated and not self.strict:
                await self.limits.activation(client, account.email_key)
            try:
                return await self._redeem(account, code)
            except errors.CodeAttemptsExhausted as dead:
                wait = await self.limits.code_wait(client, account.email_key)
                raise errors.CodeAttemptsExhausted(max(dead.retry_after, wait)) from None

    async def _redeem(self, account: Account, code: str) -> Account:
        """Try the code on the account, and look again when the account has changed in between."""
        for _ in range(LOOKS):
            live = account.live_mails(self.policy)
            hits = self._mails_of(code, account, live)
            if not hits:
                self._explain(account, code)
            compared, hit = tuple(mail.id for mail in live), hits[0] if hits else None
            redeem = Redeem(account.id, account.password_hash, account.registration, compared, hit)
            outcome = await self.issuer.ask(redeem)
            match outcome:
                case Redeemed(activated_at):
                    return replace(account, activated_at=activated_at)
                case Missed(attempts_left):
                    raise errors.WrongCode(attempts_left)
                case None:
                    account = await self._looked_again(account)
                case _:
                    assert_never(outcome)
        raise NotAccepted

    def _mails_of(self, code: str, account: Account, mails: Sequence[CodeMail]) -> list[UUID]:
        """Return which of the mails carry this code; each is compared, in constant time."""
        return [mail.id for mail in mails if self.keyring.matches(account.id, mail.id, mail.key_id, code)]

    def _explain(self, account: Account, code: str) -> None:
        """Raise what ends the try before it costs an attempt; return when the code must be counted."""
        if account.is_activated:
            raise errors.AlreadyActivated
        if self._mails_of(code, account, account.superseded_mails()):
            raise errors.WrongCode(account.attempts_left(self.policy), superseded=True)
        if account.live_mails(self.policy):
            return
        newest = account.newest_mail()
        if newest is not None and newest.guesses >= self.policy.attempts:
            raise errors.CodeAttemptsExhausted(self.policy.wait(account.code_ages()))
        raise errors.CodeExpired

    async def _looked_again(self, account: Account) -> Account:
        """Look the account up once more; a client whose password it no longer has gets InvalidCredentials."""
        found = (await self.registry.ask(Look(account.email_key))).account
        if found is None or found.password_hash != account.password_hash:
            raise errors.InvalidCredentials
        return found

    # -- resend -------------------------------------------------------------------------------------------------------

    async def resend(self, client: Client, credentials: Credentials) -> Resend | None:
        """Issue a new code; the old one stays alive until the new mail is accepted. None in strict mode, always."""
        if not self.strict:
            return await self._reissue(client, await self.profile(client, credentials))
        try:
            account = await self.authentication.authenticate(client, credentials)
            await self.authentication.count_guess(client, credentials)  # every call counts that does not answer 200
            await self._reissue(client, account)
        except errors.RateLimited:
            raise
        except errors.Refusal:
            pass  # nobody learns why no mail goes out
        await _uniform_time(client)
        return None

    async def _reissue(self, client: Client, account: Account) -> Resend:
        for _ in range(LOOKS):
            await self._check_resend(client, account)
            reservation = await self.limits.code(client, account.email_key)
            mail = self._new_mail(client)
            try:
                issued = await self.issuer.ask(Issue(account.id, account.version, mail))
            except MachineError:
                reservation.give_back()
                raise
            if issued is not None:
                self.issuer.offer(Wake(mail.id))
                ages = [0.0, *account.code_ages()]
                return Resend(account.email, self.policy.wait(ages), self.policy.codes_left_today(ages))
            reservation.give_back()
            account = await self._looked_again(account)
        raise NotAccepted

    async def _check_resend(self, client: Client, account: Account) -> None:
        """Raise what stands against a new code now, with a wait that is enough for every window."""
        if account.is_activated:
            raise errors.AlreadyActivated
        ages = account.code_ages()
        wait = self.policy.wait(ages)
        if wait == 0:
            return
        client_wait = await self.limits.code_wait(client, account.email_key)
        if client_wait > wait or self.policy.budget_wait(ages) >= wait:
            raise errors.CodesExhausted(max(client_wait, wait))
        raise errors.ResendTooSoon(wait)

    # -- status -------------------------------------------------------------------------------------------------------

    async def progress(self, client: Client, credentials: Credentials) -> Progress:
        """Say where the caller's registration stands; in strict mode a pending one is InvalidCredentials."""
        account = await self.profile(client, credentials)
        return self._progress(account, account.email)

    async def progress_of(self, status_token: str) -> Progress:
        """Say where the registration of a status address stands; raises UnknownStatus. Costs no hash."""
        named = self.keyring.read_status_token(status_token)
        account = await self.registry.ask(FindRegistration(*named)) if named else None
        if account is None or (account.read_at - account.registered_at).total_seconds() > STATUS_SECONDS:
            raise errors.UnknownStatus
        return self._progress(account, None)

    def _progress(self, account: Account, email: str | None) -> Progress:
        return Progress(
            state=account.state(self.policy),
            code_expires_in=account.code_expires_in(),
            attempts_left=account.attempts_left(self.policy),
            resend_in=self.policy.wait(account.code_ages()),
            email=email,
        )

    async def profile(self, client: Client, credentials: Credentials) -> Account:
        """Return the caller's account, and count the call; in strict mode a pending one is InvalidCredentials."""
        async with self._uniform_failure(client, credentials, errors.InvalidCredentials):
            account = self._shown(await self.authentication.authenticate(client, credentials))
        await self.limits.basic_call(client, account.email_key)
        return account

    def _shown(self, account: Account) -> Account:
        """Return the account; in strict mode a pending one is like an unknown one."""
        if self.strict and not account.is_activated:
            raise errors.InvalidCredentials
        return account

    # -- strict mode --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _uniform_failure(
        self, client: Client, credentials: Credentials, shown: type[errors.Refusal]
    ) -> AsyncIterator[None]:
        """In strict mode count every failure as a wrong password is, and raise `shown` for it at a uniform time."""
        try:
            yield
        except errors.Refusal as refusal:
            if not self.strict or isinstance(refusal, errors.RateLimited):
                raise
            if client.proven:  # the hasher has counted a wrong password already
                await self.authentication.count_guess(client, credentials)
            await _uniform_time(client)
            raise shown from None


async def _uniform_time(client: Client) -> None:
    """Wait for the next step of a fixed grid that begins with the end of the hash.

    Equal work cannot be had: a taken address writes nothing. So equal time is made, and a step is longer than the work.
    """
    steps = (anyio.current_time() - client.hashed_at) // UNIFORM_SECONDS + 1
    await anyio.sleep_until(client.hashed_at + steps * UNIFORM_SECONDS)
