"""What askers hear when the database goes away in the middle of a batch: each what is true of its own request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
import trio
import trio.testing

from actors.code_issuer import CodeIssuer, Issue, Redeem
from actors.domain.code import CodeId, Keyring
from actors.domain.email_address import EmailAddress
from actors.domain.errors import RequestInProgress
from actors.domain.password import Password
from actors.forms import Form
from actors.idempotency import Idempotency
from actors.kit.mailbox import AnswerLost, Letter
from actors.ports import IdempotencyClaim, KeyTaken, NewAccount, NewCode, Redemption, Registered, StoreUnavailable
from actors.user_registry import Find, Register, UserRegistry
from tests.fakes.accounts import FakeAccounts
from tests.fakes.clock import NOON, FakeClock
from tests.fakes.flows import FakeWakeups
from tests.fakes.idempotency import FakeIdempotencyKeys

if TYPE_CHECKING:
    from typing import NoReturn

    from actors.kit.actor import Actor
    from actors.kit.mailbox import Ask

ADA = EmailAddress("ada@example.com", "ada@example.com")
CODE = CodeId("k1", UUID(int=7))
DONE = Registered(UUID(int=1), UUID(int=2), NOON)
ACCOUNT = NewAccount(uuid4(), uuid4(), ADA, b"hash", "en", CODE, uuid4())


class Cut(FakeAccounts):
    """A store whose connection is cut in the middle of every write, and which is away after that."""

    def __init__(self) -> None:
        clock = FakeClock()
        super().__init__(clock, FakeIdempotencyKeys(clock))

    async def register(self, *_: object) -> NoReturn:
        """Take the statement and lose its answer."""
        await trio.lowlevel.checkpoint()
        raise AnswerLost

    async def redeem(self, *_: object) -> NoReturn:
        """As above."""
        await trio.lowlevel.checkpoint()
        raise AnswerLost

    async def find(self, *_: object) -> NoReturn:
        """Refuse."""
        await trio.lowlevel.checkpoint()
        raise StoreUnavailable

    async def issue(self, *_: object) -> NoReturn:
        """Refuse."""
        await trio.lowlevel.checkpoint()
        raise StoreUnavailable


class CutKeys(FakeIdempotencyKeys):
    """Keys whose first claim loses its answer."""

    cut = False

    async def claim(self, claim: IdempotencyClaim, body_digest: bytes) -> KeyTaken | None:
        """Take the claim and lose the answer, once."""
        taken = await super().claim(claim, body_digest)
        if not self.cut:
            self.cut = True
            raise AnswerLost
        return taken


async def heard(actor: Actor[Any], *messages: Ask[Any]) -> list[type[Exception]]:
    """Hand the actor one batch and return what each asker hears."""
    letters = [Letter(message) for message in messages]
    await actor.work(letters)
    errors: list[type[Exception]] = []
    for letter in letters:
        with pytest.raises(Exception) as error:  # noqa: PT011 - which one is what is asked
            await letter.outcome()
        errors.append(error.type)
    return errors


async def test_a_lost_registration_says_nothing_about_look_ups_in_its_batch() -> None:
    """Who registers must find out what became of it; who looks up hears that nothing was done."""
    assert await heard(UserRegistry(Cut()), Register(ACCOUNT), Find("ada@example.com")) == [
        AnswerLost,
        StoreUnavailable,
    ]


async def test_a_lost_redeem_says_nothing_about_resends_in_its_batch() -> None:
    """Who redeems must find out; the resend was never sent."""
    redeem = Redeem(Redemption(uuid4(), b"hash", (CODE,), CODE, uuid4()))
    issue = Issue(NewCode(uuid4(), b"hash", CODE, uuid4(), None))
    assert await heard(CodeIssuer(Cut(), FakeWakeups()), redeem, issue) == [AnswerLost, StoreUnavailable]


class Registrar:
    """Registers over a key, and is away at first when it is told so."""

    def __init__(self, keys: FakeIdempotencyKeys, *, away: bool = False) -> None:
        self.away = away
        self.idempotency = Idempotency(keys, Keyring({"k1": b"1" * 32}))

    async def register(self) -> Registered:
        """Register once more with the same key and body."""
        form = Form("ada@example.com", "correct horse", "en", "key-1")
        return await self.idempotency.once(form, ADA, Password.typed("correct horse"), self._work, lambda: None)

    async def _work(self, _claim: IdempotencyClaim | None) -> Registered:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        return DONE


async def test_a_lost_claim_of_a_key_is_no_lost_registration(autojump_clock: object) -> None:
    """Nothing was registered, the answer says so, and the key is free for the repeat."""
    registrar = Registrar(CutKeys(FakeClock()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registrar.idempotency.releasing)
        with pytest.raises(StoreUnavailable):
            await registrar.register()
        assert await registrar.register() == DONE
        nursery.cancel_scope.cancel()


async def test_a_key_is_given_back_when_the_outage_ends(autojump_clock: object) -> None:
    """Whoever heard that nothing was done can repeat at once, and need not wait until the claim ends by itself."""
    keys = FakeIdempotencyKeys(FakeClock())
    registrar = Registrar(keys, away=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registrar.idempotency.releasing)
        keys.deaf = StoreUnavailable()
        with pytest.raises(StoreUnavailable):
            await registrar.register()
        with pytest.raises(RequestInProgress):
            await registrar.register()
        keys.deaf, registrar.away = None, False
        with trio.fail_after(1):
            assert await registrar.register() == DONE
        nursery.cancel_scope.cancel()
