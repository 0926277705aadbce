"""The flows over real actors and fakes of everything outside, on one clock in the test's hands."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID, uuid4

from actors.authentication import Authentication, Credentials
from actors.code_issuer import CodeIssuer
from actors.domain.code import Keyring
from actors.domain.rate_limit import Rule
from actors.domain.user import Account, CodePolicy
from actors.kit.background import BackgroundTasks
from actors.kit.supervisor import Supervisor
from actors.limits import Client, ClientLimits, Limits
from actors.password_hasher import PasswordHasher
from actors.rate_limiter import RateLimiter
from actors.signup import Form, Registration, SignUp
from actors.user_registry import UserRegistry
from service.passwords import EmailAddresses
from tests.fakes.accounts import POLICY, FakeAccounts
from tests.fakes.clock import FakeClock
from tests.fakes.hashing import DUMMY, FakeHashing
from tests.fakes.rate_limits import FakeRateLimits

EMAIL: Final = "Ada@Example.com"
KEY: Final = "ada@example.com"
PASSWORD: Final = "correct horse"
LIMITS: Final = Limits(
    register=Rule("register", 5, 3600),
    activate=Rule("activate", 3, 60),
    password=Rule("password", 3, 60),
    password_client=Rule("password-client", 30, 60),
    basic=Rule("basic", 20, 60),
    codes_client=Rule("codes-client", 3, 3600),
)
NO_LIMITS: Final = Limits(None, None, None, None, None, None)


class FakeWakeups:
    """The Wakeups port: remembers the mails it was told of, and counts the calls."""

    def __init__(self) -> None:
        self.woken: list[UUID] = []
        self.calls = 0

    async def wake(self, mails: Sequence[UUID]) -> None:
        """Remember."""
        self.woken += mails
        self.calls += 1


class Flows:
    """Everything a test of the flows can look at and change."""

    def __init__(self, policy: CodePolicy) -> None:
        self.clock = FakeClock()
        self.keyring = Keyring({"k1": bytes(32)})
        self.accounts = FakeAccounts(self.clock, policy)
        self.rate_limits = FakeRateLimits(self.clock)
        self.hashing = FakeHashing()
        self.wakeups = FakeWakeups()
        self.counted = Counter[str]()
        self.crashes: list[Exception] = []
        self.signup: SignUp
        self.background: BackgroundTasks

    @classmethod
    @asynccontextmanager
    async def running(
        cls, limits: Limits = LIMITS, policy: CodePolicy = POLICY, *, strict: bool = False
    ) -> AsyncIterator[Flows]:
        """Start the actors around the body, in the order of the real wiring; `strict` is ENUMERATION=strict."""
        flows = cls(policy)
        supervisor = Supervisor(lambda _, error: flows.crashes.append(error))
        limiter = supervisor.start(lambda: RateLimiter(flows.rate_limits, flows.counted))
        hasher = supervisor.start(lambda: PasswordHasher(flows.hashing, limiter, 2, DUMMY), copies=2)
        registry = supervisor.start(lambda: UserRegistry(flows.accounts, policy, strict=strict))
        issuer = supervisor.start(lambda: CodeIssuer(flows.accounts, flows.wakeups))
        addresses = EmailAddresses()
        client_limits = ClientLimits(limiter, limits, flows.keyring, flows.counted)
        flows.signup = SignUp(
            registry=registry,
            hasher=hasher,
            issuer=issuer,
            limits=client_limits,
            authentication=Authentication(registry=registry, hasher=hasher, limits=client_limits, addresses=addresses),
            keyring=flows.keyring,
            policy=policy,
            addresses=addresses,
            common_passwords={"password", "12345678"},
            new_id=uuid4,
            strict=strict,
        )
        async with supervisor.running(), BackgroundTasks.open() as flows.background:
            yield flows
        assert flows.crashes == []

    async def register(
        self, email: str = EMAIL, password: str = PASSWORD, *, key: str | None = None, by: Client | None = None
    ) -> Registration | None:
        """Register, in English."""
        return await self.signup.register(by or client(), Form(email, password, "en", key))

    async def call(
        self, flow: str, *arguments: str, email: str = EMAIL, password: str = PASSWORD, by: Client | None = None
    ) -> Any:  # noqa: ANN401 - each flow has an answer of its own
        """Call a flow as the owner of an account does: `activate` with a code, `resend`, `progress`, `profile`."""
        return await getattr(self.signup, flow)(by or client(), Credentials(email, password), *arguments)

    async def account(self, key: str = KEY) -> Account:
        """Return the account, which must be there."""
        (account,) = await self.accounts.find([key])
        assert account is not None
        return account

    async def code(self, key: str = KEY) -> str:
        """Return the newest code of the account, as its mail says it."""
        account = await self.account(key)
        return self.keyring.code(account.id, account.mails[0].id, account.mails[0].key_id)

    async def token(self) -> str:
        """Return what ends the status address of the account's registration."""
        account = await self.account()
        return self.keyring.status_token(account.id, account.registration)

    async def wrong_code(self) -> str:
        """Return digits that are no code of the account."""
        account = await self.account()
        codes = {self.keyring.code(account.id, mail.id, mail.key_id) for mail in account.mails}
        return next(digits for digits in (f"{number:06}" for number in range(99)) if digits not in codes)


def client(address: str = "192.0.2.7") -> Client:
    """Return a client at this address."""
    return Client(((address, 1),))
