"""The flows over real actors and fakes of everything outside, on one clock in the test's hands."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from actors.access import Access
from actors.code_issuer import CodeIssuer
from actors.domain.code import Keyring
from actors.domain.windows import Rule
from actors.forms import Credentials, Form, Limits, Rules, Visit
from actors.idempotency import Idempotency
from actors.kit.errands import Errands
from actors.kit.supervisor import Supervisor
from actors.password_hasher import PasswordHasher
from actors.rate_limiter import Decisions, RateLimiter
from actors.shadow_registry import ShadowRegistry
from actors.shadows import Shadows
from actors.signup import SignUp
from actors.user_registry import UserRegistry
from service.adapters.common_passwords import CommonPasswords
from service.adapters.email_addresses import EmailAddresses
from tests.fakes.accounts import DEFAULTS, FakeAccounts
from tests.fakes.clock import FakeClock
from tests.fakes.hashing import DUMMY, FakeHashing
from tests.fakes.idempotency import FakeIdempotencyKeys
from tests.fakes.shadows import FakeShadows
from tests.fakes.windows import FakeWindows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from uuid import UUID

    from actors.domain.user import Account
    from actors.kit.mailbox import Address
    from service.adapters.postgres_codes import CodePolicy

EMAIL: Final = "Ada@Example.com"
KEY: Final = "ada@example.com"
PASSWORD: Final = "correct horse"
LIMITS: Final = Limits(
    register=Rule("register", 5, 3600),
    activate=Rule("activate", 3, 60),
    password=Rule("password", 3, 60),
    password_client=Rule("password-client", 30, 60),
    invalid=Rule("invalid", 60, 60),
    basic=Rule("basic", 20, 60),
    codes_client=Rule("codes-client", 3, 3600),
)
NO_LIMITS: Final = Limits(None, None, None, None, None, None, None)


class FakeWakeups:
    """The Wakeups port: remembers whose mails it was told of."""

    def __init__(self) -> None:
        self.rung: list[UUID] = []

    async def ring(self, mail_ids: Sequence[UUID]) -> None:
        """Remember."""
        self.rung += mail_ids


class Flows:
    """Everything a test of the flows can look at and turn."""

    def __init__(self, policy: CodePolicy, *, strict: bool = False) -> None:
        self.clock = FakeClock()
        self.keyring = Keyring({"k1": bytes(32)})
        self.keys = FakeIdempotencyKeys(self.clock)
        self.accounts: FakeAccounts | FakeShadows = (FakeShadows if strict else FakeAccounts)(
            self.clock, self.keys, policy
        )
        self.windows = FakeWindows(self.clock)
        self.hashing = FakeHashing()
        self.wakeups = FakeWakeups()
        self.decisions = Decisions()
        self.crashes: list[Exception] = []
        self.rules = Rules(
            keyring=self.keyring,
            attempts=policy.attempts,
            cooldown=policy.cooldown,
            addresses=EmailAddresses(),
            common_passwords=CommonPasswords(["password", "12345678"]),
        )
        self.access: Access
        self.signup: SignUp

    @classmethod
    @asynccontextmanager
    async def running(
        cls, limits: Limits = LIMITS, policy: CodePolicy = DEFAULTS, *, strict: bool = False
    ) -> AsyncIterator[Flows]:
        """Employ the actors around the body, in the order of the real wiring; `strict` is ENUMERATION=strict."""
        flows = cls(policy, strict=strict)
        supervisor = Supervisor(lambda _, error: flows.crashes.append(error))
        limiter = supervisor.employ(lambda: RateLimiter(flows.windows, flows.decisions))
        hasher = supervisor.employ(lambda: PasswordHasher(flows.hashing, limiter, 2, DUMMY), copies=2)
        registry = supervisor.employ(lambda: UserRegistry(flows.accounts))
        issuer = supervisor.employ(lambda: CodeIssuer(flows.accounts, flows.wakeups))
        shadows = None
        if isinstance(flows.accounts, FakeShadows):
            registrations = flows.accounts
            shadows = Shadows(supervisor.employ(lambda: ShadowRegistry(registrations)), hasher, flows.keyring)
        flows.access = Access(
            limiter=limiter, registry=registry, hasher=hasher, limits=limits, rules=flows.rules, shadows=shadows
        )
        async with supervisor.running(), Errands.open() as errands:
            flows.signup = SignUp(
                registry=registry,
                issuer=issuer,
                access=flows.access,
                idempotency=Idempotency(flows.keys, flows.keyring),
                errands=errands,
                rules=flows.rules,
                shadows=shadows,
            )
            yield flows

    @asynccontextmanager
    async def beside(self, issuer: CodeIssuer) -> AsyncIterator[tuple[Address, Address]]:
        """Run another registry over the same accounts, and this issuer, around the body."""
        supervisor = Supervisor(lambda _, error: self.crashes.append(error))
        registry = supervisor.employ(lambda: UserRegistry(self.accounts))
        address = supervisor.employ(lambda: issuer)
        async with supervisor.running():
            yield registry, address

    async def account(self, key: str = KEY) -> Account:
        """Return the account, which must be there."""
        (account,) = await self.accounts.find([key])
        assert account is not None
        return account

    async def code(self, key: str = KEY) -> str:
        """Return the newest code of the account, as its mail says it."""
        account = await self.account(key)
        return self.keyring.code(account.id, account.code.id)

    async def wrong_code(self) -> str:
        """Return digits that are no code of the account."""
        account = await self.account()
        known = [account.code, *([account.old_code] if account.old_code else [])]
        codes = {self.keyring.code(account.id, each.id) for each in known}
        return next(digits for digits in ("000000", "111111", "222222") if digits not in codes)

    async def mail(self) -> UUID:
        """Return the id of the mail that carries the newest code."""
        code_id = (await self.account()).code.id
        return next(mail for mail, carried in self.accounts.mails.items() if carried == code_id)


def visit(client: str = "192.0.2.7") -> Visit:
    """Return a request from this address."""
    return Visit(((client, 1),))


def form(email: str = EMAIL, password: str = PASSWORD, key: str | None = None) -> Form:
    """Return a filled form."""
    return Form(email, password, "en", key)


def credentials(password: str = PASSWORD, email: str = EMAIL) -> Credentials:
    """Return what Basic auth carries."""
    return Credentials(email, password)
