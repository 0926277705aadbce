"""The flows: register, activate, resend, status, over the actors. One method is one thing a client can want."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio

from actors.code_flows import CodeFlows
from actors.code_issuer import Ring
from actors.domain.code import typed_code
from actors.domain.errors import (
    CodeAttemptsExhausted,
    CodesExhausted,
    EmailTaken,
    RequestInProgress,
    ResendTooSoon,
    UnknownStatus,
)
from actors.domain.password import Password
from actors.domain.user import State
from actors.forms import Profile, Progress, Registration
from actors.kit.mailbox import MachineError
from actors.ports import NewAccount
from actors.user_registry import Find, FindRegistration, Register

if TYPE_CHECKING:
    from actors.access import Access, Place
    from actors.domain.email_address import EmailAddress
    from actors.domain.user import Account
    from actors.forms import Activation, Credentials, Form, Resend, Rules, Visit
    from actors.idempotency import Idempotency
    from actors.kit.errands import Errands
    from actors.kit.mailbox import Address
    from actors.ports import IdempotencyClaim, Registered
    from actors.shadows import Shadows

STATUS_SECONDS = 86400  # a status address shows nothing after a day
LOOKS, LOOK_SECONDS = 25, 0.1  # at an address whose codes are reserved, until its registration has its hash
VACANT = frozenset({State.EXPIRED, State.EXHAUSTED, State.UNDELIVERABLE})  # states that may be registered again


class SignUp:
    """The flows, built once per process over the addresses of the actors.

    Every method may raise a Refusal, or a MachineError when the machinery failed. A caller that is cancelled
    stops nothing that was accepted. With `shadows` nobody can tell a taken address from a free one.
    """

    def __init__(  # noqa: PLR0913 - the flows meet everyone
        self,
        *,
        registry: Address,
        issuer: Address,
        access: Access,
        idempotency: Idempotency,
        errands: Errands,
        rules: Rules,
        shadows: Shadows | None = None,
    ) -> None:
        self._registry = registry
        self._issuer = issuer
        self._access = access
        self._idempotency = idempotency
        self._errands = errands
        self._rules = rules
        self._shadows = shadows
        self._codes = CodeFlows(registry, issuer, rules, shadows)
        self._keyring = rules.keyring

    def place(self) -> Place:
        """Return a place for a registration that has not begun; raises NotAccepted when a hash would find no room."""
        return self._access.place()

    async def welcome(self, visit: Visit) -> None:
        """Turn away a client that keeps sending refused registrations: raises RateLimited. Call before reading."""
        await self._access.welcome(visit)

    async def refused(self, visit: Visit) -> None:
        """Count a registration refused as malformed, invalid or too many: raises RateLimited beyond the limit."""
        await self._access.refused(visit)

    async def register(self, visit: Visit, form: Form) -> Registration:
        """Add a pending account and owe its mail.

        With an idempotency key a repeat hears the first answer again and uses nothing up.
        """
        address = self._rules.addresses.read(form.email)
        password = Password.typed(form.password)
        password.check_strength(address, self._rules.common_passwords)
        work = partial(self._unless_taken, visit, form, address, password)
        registered = await self._errands.run(
            partial(self._idempotency.once, form, address, password, work, visit.leave)
        )
        token = self._keyring.status_token(registered.registration)
        return Registration(registered.id, form.email, registered.created_at, token)

    async def _unless_taken(
        self, visit: Visit, form: Form, address: EmailAddress, password: Password, claim: IdempotencyClaim | None
    ) -> Registered:
        """Register; a client that is short of codes hears all the same that the address is taken, and uses its try."""
        said = len(visit.readings)
        try:
            return await self._admitted(visit, form, address, password, claim)
        except CodesExhausted:
            if self._shadows is not None or not await self._taken(address.key):
                raise
        del visit.readings[said:]
        await self._access.attempt(visit)
        raise EmailTaken

    async def _taken(self, email_key: str) -> bool:
        """Return whether the address is taken; wait for those who have reserved its codes and are about to take it."""
        for _ in range(LOOKS):
            known = await self._registry.ask(Find(email_key))
            if known is not None:
                return known.state(self._rules.attempts) not in VACANT
            await anyio.sleep(LOOK_SECONDS)
        return False

    async def _admitted(
        self, visit: Visit, form: Form, address: EmailAddress, password: Password, claim: IdempotencyClaim | None
    ) -> Registered:
        """Reserve the limits, hash, register; give back what was not used."""
        with visit.place or self._access.place() as place:
            entry = await self._access.registration(visit, address.key)
            try:
                await self._look(address)
                place.leave()
                hashed = await self._access.hash(address.key, password)
                return await self._register(visit, form, address, hashed, claim)
            except EmailTaken:
                entry.give_back_code()
                raise
            except (CodesExhausted, MachineError, RequestInProgress):  # in progress: a repeat has an entry of its own
                entry.give_back_all()
                raise

    async def _look(self, address: EmailAddress) -> None:
        """Look first, only to spare a hash and to hear at once that the store is away; the insert decides.

        With shadows nobody is refused, and nothing is spared.
        """
        if self._shadows is None:
            known = await self._registry.ask(Find(address.key))
            if known is not None and known.state(self._rules.attempts) not in VACANT:
                raise EmailTaken
            if known is not None:
                self._codes.check_budget(known)

    async def _register(
        self, visit: Visit, form: Form, address: EmailAddress, hashed: bytes, claim: IdempotencyClaim | None
    ) -> Registered:
        """Create the account and ring for its mail."""
        account = NewAccount(
            id=uuid4(),
            registration=uuid4(),
            email=address,
            password_hash=hashed,
            locale=form.locale,
            code_id=self._keyring.code_id(uuid4()),
            mail_id=uuid4(),
            traceparent=visit.traceparent,
            idempotency=claim,
        )
        if self._shadows is None:
            registered = await self._registry.ask(Register(account))
        else:
            registered = await self._shadows.enter(account)
        self._issuer.offer(Ring(account.mail_id))
        return registered

    async def activate(self, visit: Visit, credentials: Credentials, code: str) -> Activation:
        """Redeem the typed code.

        Of parallel calls with the right code one succeeds and the others hear AlreadyActivated. A wrong code
        costs an attempt, a superseded or a malformed one does not.
        """
        typed = typed_code(code, self._keyring.digits)
        account = await self._access.authenticate(visit, credentials)
        if account.activated_at is None:
            await self._access.activation(visit, account)
        try:
            return await self._errands.run(partial(self._codes.redeem, account, typed))
        except CodeAttemptsExhausted as dead:
            wait = await self._access.code_wait(visit, account.email_key)
            raise CodeAttemptsExhausted(max(dead.retry_after, wait)) from None

    async def resend(self, visit: Visit, credentials: Credentials) -> Resend:
        """Issue a new code; the old one stays alive until the new mail is accepted."""
        account = await self._authenticated(visit, credentials)
        try:
            self._codes.check_resend(account)
        except (ResendTooSoon, CodesExhausted) as early:
            wait = await self._access.code_wait(visit, account.email_key)
            if wait > early.retry_after:
                raise CodesExhausted(wait) from None
            raise
        entry = await self._access.code(visit, account.email_key)
        return await self._errands.run(partial(self._codes.reissue, visit, account, entry))

    async def progress(self, visit: Visit, credentials: Credentials) -> Progress:
        """Say where the caller's registration stands."""
        account = await self._authenticated(visit, credentials)
        return self._progress(account, account.email)

    async def progress_of(self, status_token: str) -> Progress:
        """Say where the registration of a status address stands; raises UnknownStatus. Costs no hash."""
        registration = self._keyring.registration(status_token)
        account = await self._registry.ask(FindRegistration(registration)) if registration else None
        if account is None or (account.read_at - account.registered_at).total_seconds() > STATUS_SECONDS:
            raise UnknownStatus
        return self._progress(account, None)

    def _progress(self, account: Account, email: str | None) -> Progress:
        return Progress(
            state=account.state(self._rules.attempts),
            code_expires_in=account.code_expires_in(),
            attempts_left=account.attempts_left(self._rules.attempts),
            resend_in=account.resend_in(),
            email=email,
        )

    async def profile(self, visit: Visit, credentials: Credentials) -> Profile:
        """Return the caller's account."""
        account = await self._authenticated(visit, credentials)
        activated = account.activated_at
        return Profile(account.id, account.email, activated is not None, account.created_at, activated)

    async def _authenticated(self, visit: Visit, credentials: Credentials) -> Account:
        account = await self._access.authenticate(visit, credentials)
        await self._access.basic_call(visit, account)
        return account
