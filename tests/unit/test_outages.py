"""What askers hear when the database goes away in the middle of a batch: each what is true of its own request."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
import trio
import trio.testing

from actors.code_issuer import CodeIssuer, Issue, Redeem
from actors.domain.code import CodeId, Keyring
from actors.domain.email_address import EmailAddress
from actors.domain.password import Password
from actors.forms import Form
from actors.idempotency import Idempotency
from actors.kit.mailbox import AnswerLost, Letter
from actors.ports import IdempotencyClaim, NewAccount, NewCode, Redemption, StoreUnavailable
from actors.user_registry import Find, Register, UserRegistry
from tests.fakes.accounts import FakeAccounts
from tests.fakes.clock import FakeClock
from tests.fakes.flows import FakeWakeups
from tests.fakes.idempotency import FakeIdempotencyKeys

if TYPE_CHECKING:
    from typing import NoReturn

    from actors.kit.actor import Actor
    from actors.kit.mailbox import Ask

ADA = EmailAddress("ada@example.com", "ada@example.com")
CODE = CodeId("k1", UUID(int=7))
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
    """Keys whose claims lose their answer."""

    async def claim(self, claim: IdempotencyClaim, body_digest: bytes) -> NoReturn:
        """Take the claim and lose its answer."""
        await super().claim(claim, body_digest)
        raise AnswerLost


async def heard(actor: Actor, *messages: Ask[object]) -> list[type[Exception]]:
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


async def test_a_lost_claim_of_a_key_is_no_lost_registration() -> None:
    """Nothing was registered, and the answer says so."""
    keys = Idempotency(CutKeys(FakeClock()), Keyring({"k1": b"1" * 32}))

    async def work(_claim: IdempotencyClaim | None) -> NoReturn:
        raise AssertionError("nobody may register without the key")

    form = Form("ada@example.com", "correct horse", "en", "key-1")
    with pytest.raises(StoreUnavailable):
        await keys.once(form, ADA, Password.typed("correct horse"), work)
