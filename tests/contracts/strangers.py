"""Strangers who try to learn whether an address is taken, and the worlds in which they try.

A world differs from the others only in what the owner of the address has done and does. A transcript is everything that
strangers hear, without what is theirs alone: ids, tokens, and the moments of their own requests.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from actors.access import Access
from actors.code_issuer import CodeIssuer
from actors.domain.errors import Refusal
from actors.forms import Activation, Credentials, Form, Profile, Progress, Registration, Resend, Visit
from actors.idempotency import Idempotency
from actors.kit.errands import Errands
from actors.kit.supervisor import Supervisor
from actors.password_hasher import PasswordHasher
from actors.rate_limiter import RateLimiter
from actors.shadow_registry import ShadowRegistry
from actors.shadows import Shadows
from actors.signup import SignUp
from actors.user_registry import UserRegistry
from tests.fakes.accounts import DEFAULTS
from tests.fakes.flows import Flows
from tests.fakes.hashing import DUMMY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from random import Random

    from actors.forms import Limits
    from tests.contracts.shadow_stores import ShadowStore

STEP: Final = 10  # seconds: the owner of a transcript cannot tell less apart, so that a slow machine changes nothing
OWNER: Final = "the owner's own"
WRONG: Final = "000000"
PEOPLE: Final = 3


class World(StrEnum):
    """What the owner of the address has done before the strangers come."""

    FREE = "free"  # nothing
    PENDING = "pending"  # registered; the code lives
    LAPSED = "lapsed"  # registered; the code is dead
    SPENT = "spent"  # registered, and used the codes of the hour up
    ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class Move:
    """One thing a stranger does, or that happens to everybody."""

    what: str
    who: int = 0
    number: int = 0

    def __str__(self) -> str:
        return f"{self.what} {self.who} {self.number}"


def moves(chance: Random, length: int) -> list[Move]:
    """Return a sequence of moves; every stranger registers now and then, and calls everything at any time."""
    calls = ["register"] * 2 + ["keyed"] + ["activate"] * 4 + ["resend"] * 2 + ["progress", "profile", "post", "wait"]
    return [Move(chance.choice(calls), chance.randrange(PEOPLE), chance.randrange(12)) for _ in range(length)]


def crowds(sequence: list[Move]) -> list[list[Move]]:
    """Part a sequence into moves that can be made at once: by different strangers, with no post and no time between."""
    parted: list[list[Move]] = []
    for move in sequence:
        before = parted[-1] if parted else []
        apart = {"post", "wait"} & {move.what, *(other.what for other in before)}
        if not before or apart or any(other.who == move.who for other in before):
            parted.append([])
        parted[-1].append(move)
    return parted


class Scene:
    """The flows over one store, with one address and its strangers."""

    def __init__(self, flows: Flows, store: ShadowStore, mark: str) -> None:
        self._flows = flows
        self._store = store
        self._mark = mark
        self.email = f"{mark}@example.com"
        self._visits = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, store: ShadowStore, mark: str, limits: Limits) -> AsyncIterator[Scene]:
        """Employ the actors over the store around the body."""
        flows = Flows(DEFAULTS)
        supervisor = Supervisor(lambda _, error: flows.crashes.append(error))
        limiter = supervisor.employ(lambda: RateLimiter(flows.windows, flows.decisions))
        hasher = supervisor.employ(lambda: PasswordHasher(flows.hashing, limiter, 2, DUMMY), copies=2)
        registry = supervisor.employ(lambda: UserRegistry(store.accounts))
        issuer = supervisor.employ(lambda: CodeIssuer(store.codes, flows.wakeups))
        beside = supervisor.employ(lambda: ShadowRegistry(store.registrations))
        shadows = Shadows(beside, hasher, flows.keyring)
        access = Access(
            limiter=limiter, registry=registry, hasher=hasher, limits=limits, rules=flows.rules, shadows=shadows
        )
        async with supervisor.running(), Errands.open() as errands:
            flows.signup = SignUp(
                registry=registry,
                issuer=issuer,
                access=access,
                idempotency=Idempotency(store.keys, flows.keyring),
                errands=errands,
                rules=flows.rules,
                shadows=shadows,
            )
            yield cls(flows, store, mark)
        assert flows.crashes == []

    async def build(self, world: World) -> None:
        """Let the owner do what the world begins with."""
        if world is World.FREE:
            return
        await self._register(OWNER)
        if world is World.ACTIVE:
            await self.activate_owner()
        if world is World.SPENT:
            for _ in range(4):
                await self._wait(40)
                await self._flows.signup.resend(self._owners_visit(), self._credentials(OWNER))
        if world in {World.LAPSED, World.SPENT}:
            await self._store.post()
            await self._wait(70)

    async def activate_owner(self) -> bool:
        """Let the owner type the code of the newest mail, if a real one came."""
        accounts = (await self._store.registrations.find_all([self.email]))[0]
        account = next(iter([one for one in accounts if await self._is(one.password_hash, OWNER)]), None)
        if account is None or account.code.id == account.code.id.silenced():
            return False
        code = self._flows.keyring.code(account.id, account.code.id)
        with suppress(Refusal):
            await self._flows.signup.activate(self._owners_visit(), self._credentials(OWNER), code)
            return True
        return False

    async def _is(self, hashed: bytes, password: str) -> bool:
        return await self._flows.hashing.check(password.encode(), hashed)

    async def owner_moves(self, chance: Random) -> None:
        """Let the owner do something, whatever comes of it."""
        match chance.randrange(5):
            case 0:
                await self._register(OWNER)
            case 1:
                await self.activate_owner()
            case 2:
                with suppress(Refusal):
                    await self._flows.signup.resend(self._owners_visit(), self._credentials(OWNER))
            case 3:
                with suppress(Refusal):
                    await self._flows.signup.profile(self._owners_visit(), self._credentials(OWNER))
            case _:
                return

    async def _register(self, password: str) -> None:
        with suppress(Refusal):
            await self._flows.signup.register(self._owners_visit(), Form(self.email, password))

    async def heard(self, move: Move) -> str:
        """Make the move and return what is heard of it."""
        match move.what:
            case "post":
                await self._store.post()
                return "post"
            case "wait":
                await self._wait(STEP * (1 + move.number))
                return f"wait {move.number}"
            case _:
                visit = self._visit(f"client-{move.who}")
                answer = await self._called(self._call(move, visit))
                limits = [(one.rule.name, one.remaining, _steps(one.reset_seconds)) for one in visit.readings]
                return f"{move}: {answer} {limits}"

    def _call(self, move: Move, visit: Visit) -> Callable[[], Awaitable[object]]:
        signup, password = self._flows.signup, f"stranger-{move.who}"
        who = self._credentials(password)
        key = f"{self._mark}-{move.who}-{move.number % 2}"
        match move.what:
            case "register":
                return lambda: signup.register(visit, Form(self.email, password))
            case "keyed":
                return lambda: signup.register(visit, Form(self.email, password, "en", key))
            case "activate":
                return lambda: signup.activate(visit, who, WRONG)
            case "resend":
                return lambda: signup.resend(visit, who)
            case "progress":
                return lambda: signup.progress(visit, who)
            case _:
                return lambda: signup.profile(visit, who)

    async def _called(self, call: Callable[[], Awaitable[object]]) -> str:
        try:
            return self._told(await call())
        except Refusal as refusal:
            facts = {name: value for name, value in vars(refusal).items() if name != "retry_after"}
            wait = None if refusal.retry_after is None else _steps(refusal.retry_after)
            return f"{type(refusal).__name__} {facts} {wait}"

    def _told(self, answer: Any) -> str:  # noqa: ANN401 - whatever a flow returns
        match answer:
            case Registration(email=email):
                told: tuple[object, ...] = ("registration", email)
            case Profile(email=email, is_activated=active, activated_at=at):
                told = ("profile", email, active, at)
            case Progress():
                ends = None if answer.code_expires_in is None else _steps(answer.code_expires_in)
                told = (answer.state, ends, answer.attempts_left, _steps(answer.resend_in), answer.email)
            case Resend():
                told = ("resend", answer.email, _steps(answer.resend_in), answer.codes_left_today)
            case Activation():
                told = ("activation", answer.email)
            case _:
                raise AssertionError(answer)
        return repr(told).replace(self._mark, "somebody")

    async def _wait(self, seconds: float) -> None:
        await self._store.wait(seconds)
        self._flows.clock.advance(seconds)

    def _owners_visit(self) -> Visit:
        """Come from another client every time: the strangers' limits are not the owner's."""
        self._visits += 1
        return self._visit(f"owner-{self._visits}")

    def _visit(self, client: str) -> Visit:
        return Visit(((f"{self._mark}-{client}", 1),))

    def _credentials(self, password: str) -> Credentials:
        return Credentials(self.email, password)


def _steps(seconds: float) -> int:
    return ceil(seconds / STEP)
