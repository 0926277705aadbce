"""The flows: register, activate, resend and status. One method is one thing that a client can want."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

import anyio

from actors.code_issuer import Issue, Redeem, Wake
from actors.domain.code import typed_code
from actors.domain.errors import (
    ActivationFailed,
    AlreadyActivated,
    CodeAttemptsExhausted,
    CodeExpired,
    CodesExhausted,
    EmailTaken,
    IdempotencyKeyInvalid,
    IdempotencyKeyReused,
    InvalidCredentials,
    RateLimited,
    Refusal,
    ResendTooSoon,
    UnknownStatus,
    WrongCode,
)
from actors.domain.mail import MailKind
from actors.domain.password import Password
from actors.kit.mailbox import MachineError, NotAccepted
from actors.password_hasher import Hash
from actors.ports import Answer, KeyUse, Missed, NewAccount, NewIssue, NewMail, Redeemed, Redemption, Registered
from actors.user_registry import FindRegistration, Look, Register

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Container
    from datetime import datetime
    from uuid import UUID

    from actors.authentication import Authentication, Credentials
    from actors.domain.code import Keyring
    from actors.domain.email_address import EmailAddress
    from actors.domain.user import Account, CodePolicy, State
    from actors.kit.mailbox import Address
    from actors.limits import Client, ClientLimits, Reservation
    from actors.ports import AddressReader

KEY = re.compile(r"[!-~]{1,64}")  # an Idempotency-Key: visible ASCII
STATUS_SECONDS = 86400  # a status address shows nothing after a day
LOOKS = 8  # an account that changes under so many looks in a row is being played with
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
class _Key:
    """An idempotency key's digests under every configured key, and those of the body, the signing key's first."""

    digests: tuple[bytes, ...] = field(default=(), repr=False)
    body_digests: tuple[bytes, ...] = field(default=(), repr=False)

    def use(self) -> KeyUse | None:
        return KeyUse(self.digests[0], self.body_digests[0]) if self.digests else None


class SignUp:
    """The flows, built once per process over the addresses of the actors.

    Every method may raise a Refusal, or a MachineError when the service failed. In `strict` mode
    (`ENUMERATION=strict`) register, resend and a failed activation answer alike for every address, at the same time
    after their hash.
    """

    def __init__(  # noqa: PLR0913 - the flows meet every actor
        self,
        *,
        registry: Address,
        hasher: Address,
        issuer: Address,
        limits: ClientLimits,
        authentication: Authentication,
        keyring: Keyring,
        policy: CodePolicy,
        addresses: AddressReader,
        common_passwords: Container[str],
        new_id: Callable[[], UUID],
        strict: bool = False,
    ) -> None:
        self._registry = registry
        self._hasher = hasher
        self._issuer = issuer
        self._limits = limits
        self._authentication = authentication
        self._keyring = keyring
        self._policy = policy
        self._addresses = addresses
        self._common_passwords = common_passwords
        self._new_id = new_id
        self._strict = strict

    # -- register -----------------------------------------------------------------------------------------------------

    async def register(self, client: Client, form: Form) -> Registration | None:
        """Add a pending account and owe its mail; None in strict mode, which never says what it did.

        With an idempotency key a repeat returns the first answer and uses nothing up. Of racing registrations of one
        address, the insert in UserRegistry.Register decides which one wins.
        """
        address = self._addresses.read(form.email)
        password = Password.typed(form.password)
        password.check_strength(address, self._common_passwords)
        key = self._key(form, address, password)
        looked = await self._registry.ask(Look(address.key, key.digests))
        if looked.answer is not None:
            return self._repeated(form, key, looked.answer)
        reservation: Reservation | None = None
        try:
            held = self._is_held(looked.account)
            self._hasher.expect_room(Hash)  # rejects early: with no room for the hash, the limiter is never asked
            reservation = await self._limits.registration(client, address.key, code=not held)
            if held:
                raise EmailTaken
            hashed = await self._hasher.ask(Hash(password.secret))
            client.hashed_at = anyio.current_time()
            mail = self._new_mail(client)
            account = NewAccount(self._new_id(), address, hashed, form.locale, mail, key.use())
            registered = await self._registry.ask(Register(account))
        except (Refusal, MachineError) as error:
            return await self._refused(error, reservation, form, key)
        self._issuer.offer(Wake(mail.id))
        return await self._answered(client, form, registered)

    def _is_held(self, account: Account | None) -> bool:
        """Return whether the address is taken, to spare a hash: the statement decides. Raises CodesExhausted.

        In strict mode nothing is refused early, and nothing is spared.
        """
        if account is None or self._strict:
            return False
        if account.is_held(self._policy):
            return True
        if wait := account.budget_wait(self._policy):
            raise CodesExhausted(wait)
        return False

    async def _refused(
        self, error: Refusal | MachineError, reservation: Reservation | None, form: Form, key: _Key
    ) -> Registration | None:
        """Give back what was reserved and raise, or return the answer of the first request with the same key.

        A taken address keeps the client's try. A full limit or queue may be full of the same request's first copies,
        so their answer is waited for.
        """
        taken = isinstance(error, EmailTaken)
        answer = await self._first_answer(key, wait=not taken) if key.digests else None
        if reservation is not None and taken and answer is None:
            reservation.give_back_code()
        elif reservation is not None:
            reservation.give_back()
        if answer is None:
            raise error
        return self._repeated(form, key, answer)

    async def _first_answer(self, key: _Key, *, wait: bool) -> Answer | None:
        """Look for the first request's answer, for some seconds where it may still be at work."""
        end = anyio.current_time() + (REPEAT_SECONDS if wait else 0)
        while True:
            try:
                looked = await self._registry.ask(Look("", key.digests))
            except MachineError:
                return None
            if looked.answer is not None or anyio.current_time() >= end:
                return looked.answer
            await anyio.sleep(REPEAT_LOOK_SECONDS)

    def _key(self, form: Form, address: EmailAddress, password: Password) -> _Key:
        if form.idempotency_key is None:
            return _Key()
        if not KEY.fullmatch(form.idempotency_key):
            raise IdempotencyKeyInvalid
        digests = self._keyring.idempotency_digests(form.idempotency_key, address.key)
        body_digests = self._keyring.idempotency_digests(form.email, password.secret.decode(), form.locale)
        return _Key(tuple(digests), tuple(body_digests))

    def _repeated(self, form: Form, key: _Key, answer: Answer) -> Registration | None:
        if answer.body_digest not in key.body_digests:
            raise IdempotencyKeyReused
        return None if self._strict or answer.registered is None else self._registration(form, answer.registered)

    async def _answered(self, client: Client, form: Form, registered: Registered | None) -> Registration | None:
        if self._strict or registered is None:
            await _uniform_time(client)
            return None
        return self._registration(form, registered)

    def _registration(self, form: Form, registered: Registered) -> Registration:
        token = self._keyring.status_token(registered.account, registered.registration)
        return Registration(registered.account, form.email, registered.created_at, token)

    def _new_mail(self, client: Client) -> NewMail:
        return NewMail(self._new_id(), MailKind.CODE, self._keyring.signing, client.traceparent)

    # -- activate -----------------------------------------------------------------------------------------------------

    async def activate(self, client: Client, credentials: Credentials, code: str) -> Activation:
        """Redeem the typed code.

        Of parallel calls with the right code one succeeds and the others get AlreadyActivated. A wrong code costs an
        attempt, a superseded or a malformed one does not. In strict mode every failure is ActivationFailed.
        """
        typed = typed_code(code, self._keyring.digits)
        async with self._uniform_failure(client, credentials, ActivationFailed):
            account = await self._authentication.authenticate(client, credentials)
            if account.activated_at is None and not self._strict:
                await self._limits.activation(client, account.email_key)
            try:
                return await self._redeem(account, typed)
            except CodeAttemptsExhausted as dead:
                wait = await self._limits.code_wait(client, account.email_key)
                raise CodeAttemptsExhausted(max(dead.retry_after, wait)) from None

    async def _redeem(self, account: Account, typed: str) -> Activation:
        """Try the code on the account, and look again when the account has changed in between."""
        for _ in range(LOOKS):
            live = account.live_mails(self._policy)
            hits = [mail.id for mail in live if self._keyring.matches(account.id, mail.id, mail.key_id, typed)]
            if not hits:
                self._explain(account, typed)
            compared = tuple(mail.id for mail in live)
            redemption = Redemption(
                account.id, account.password_hash, account.registration, compared, hits[0] if hits else None
            )
            outcome = await self._issuer.ask(Redeem(redemption))
            match outcome:
                case Redeemed(activated_at):
                    return Activation(account.email, activated_at)
                case Missed(attempts_left):
                    raise WrongCode(attempts_left)
                case None:
                    account = await self._looked_again(account)
                case _:
                    assert_never(outcome)
        raise NotAccepted

    def _explain(self, account: Account, typed: str) -> None:
        """Raise what ends the try before it costs an attempt; return when the typed code must be counted."""
        if account.activated_at is not None:
            raise AlreadyActivated
        superseded = [
            self._keyring.matches(account.id, mail.id, mail.key_id, typed) for mail in account.superseded_mails()
        ]
        if any(superseded):
            raise WrongCode(account.attempts_left(self._policy), superseded=True)
        if account.live_mails(self._policy):
            return
        newest = account.newest_mail()
        if newest is not None and newest.guesses >= self._policy.attempts:
            raise CodeAttemptsExhausted(account.resend_in(self._policy))
        raise CodeExpired

    async def _looked_again(self, account: Account) -> Account:
        """Look the account up once more; a client whose password it no longer has gets InvalidCredentials."""
        found = (await self._registry.ask(Look(account.email_key))).account
        if found is None or found.password_hash != account.password_hash:
            raise InvalidCredentials
        return found

    # -- resend -------------------------------------------------------------------------------------------------------

    async def resend(self, client: Client, credentials: Credentials) -> Resend | None:
        """Issue a new code; the old one stays alive until the new mail is accepted. None in strict mode, always."""
        if not self._strict:
            return await self._reissue(client, await self._authenticated(client, credentials))
        try:
            account = await self._authentication.authenticate(client, credentials)
            await self._authentication.count_guess(client, credentials)  # every call counts that does not answer 200
            await self._reissue(client, account)
        except RateLimited:
            raise
        except Refusal:
            pass  # nobody learns why no mail goes out
        await _uniform_time(client)
        return None

    async def _reissue(self, client: Client, account: Account) -> Resend:
        for _ in range(LOOKS):
            await self._check_resend(client, account)
            reservation = await self._limits.code(client, account.email_key)
            mail = self._new_mail(client)
            try:
                issued = await self._issuer.ask(Issue(NewIssue(account.id, account.version, mail)))
            except MachineError:
                reservation.give_back()
                raise
            if issued is not None:
                self._issuer.offer(Wake(mail.id))
                after = account.after_issue(mail.id, mail.key_id, self._policy)
                return Resend(account.email, after.resend_in(self._policy), after.codes_left_today(self._policy))
            reservation.give_back()
            account = await self._looked_again(account)
        raise NotAccepted

    async def _check_resend(self, client: Client, account: Account) -> None:
        """Raise what stands against a new code now, with a wait that is enough for every window."""
        if account.activated_at is not None:
            raise AlreadyActivated
        wait = account.resend_in(self._policy)
        if wait == 0:
            return
        client_wait = await self._limits.code_wait(client, account.email_key)
        if client_wait > wait or account.budget_wait(self._policy) >= wait:
            raise CodesExhausted(max(client_wait, wait))
        raise ResendTooSoon(wait)

    # -- status -------------------------------------------------------------------------------------------------------

    async def progress(self, client: Client, credentials: Credentials) -> Progress:
        """Say where the caller's registration stands; in strict mode a pending one is InvalidCredentials."""
        account = await self._authenticated(client, credentials)
        return self._progress(account, account.email)

    async def progress_of(self, status_token: str) -> Progress:
        """Say where the registration of a status address stands; raises UnknownStatus. Costs no hash."""
        named = self._keyring.read_status_token(status_token)
        account = await self._registry.ask(FindRegistration(*named)) if named else None
        if account is None or (account.read_at - account.registered_at).total_seconds() > STATUS_SECONDS:
            raise UnknownStatus
        return self._progress(account, None)

    def _progress(self, account: Account, email: str | None) -> Progress:
        return Progress(
            state=account.state(self._policy),
            code_expires_in=account.code_expires_in(),
            attempts_left=account.attempts_left(self._policy),
            resend_in=account.resend_in(self._policy),
            email=email,
        )

    async def profile(self, client: Client, credentials: Credentials) -> Profile:
        """Return the caller's account; in strict mode a pending one is InvalidCredentials."""
        account = await self._authenticated(client, credentials)
        activated = account.activated_at
        return Profile(account.id, account.email, activated is not None, account.created_at, activated)

    async def _authenticated(self, client: Client, credentials: Credentials) -> Account:
        """Check the password and count the call."""
        async with self._uniform_failure(client, credentials, InvalidCredentials):
            account = self._shown(await self._authentication.authenticate(client, credentials))
        await self._limits.basic_call(client, account.email_key)
        return account

    def _shown(self, account: Account) -> Account:
        """Return the account; in strict mode a pending one is like an unknown one."""
        if self._strict and account.activated_at is None:
            raise InvalidCredentials
        return account

    # -- strict mode --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _uniform_failure(
        self, client: Client, credentials: Credentials, shown: type[Refusal]
    ) -> AsyncIterator[None]:
        """In strict mode count every failure as a wrong password is, and raise `shown` for it at a uniform time."""
        try:
            yield
        except Refusal as refusal:
            if not self._strict or isinstance(refusal, RateLimited):
                raise
            if client.proven:  # the hasher has counted a wrong password already
                await self._authentication.count_guess(client, credentials)
            await _uniform_time(client)
            raise shown from None


async def _uniform_time(client: Client) -> None:
    """Wait for the next step of a fixed grid that begins with the end of the hash.

    Equal work cannot be had: a taken address writes nothing. So equal time is made, and a step is longer than the work.
    """
    steps = (anyio.current_time() - client.hashed_at) // UNIFORM_SECONDS + 1
    await anyio.sleep_until(client.hashed_at + steps * UNIFORM_SECONDS)
