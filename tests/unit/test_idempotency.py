"""Idempotency keys of requests that stand still, and of processes that die."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import trio

from actors.domain.code import Keyring
from actors.domain.email_address import EmailAddress
from actors.domain.errors import EmailTaken, RateLimited, RequestInProgress
from actors.domain.password import Password
from actors.idempotency import Idempotency
from actors.kit.mailbox import AnswerLost, NotAccepted
from actors.ports import IdempotencyClaim, Registered, StoreUnavailable
from tests.fakes.clock import NOON, FakeClock
from tests.fakes.flows import EMAIL, KEY, PASSWORD, Flows, form, visit
from tests.fakes.idempotency import FakeIdempotencyKeys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from actors.forms import Registration

ADA = EmailAddress(EMAIL, KEY)
DONE = Registered(uuid4(), uuid4(), NOON)


class Stillness:
    """A request with a key that stands still in the middle of its hash, and a repeat that comes after its claim."""

    def __init__(self, flows: Flows) -> None:
        self.flows = flows
        self.heard: list[Registration] = []

    async def first(self) -> None:
        """Register, and stand still for ten seconds."""
        self.flows.hashing.seconds = 10
        self.heard.append(await self.flows.signup.register(visit(), form(key="k-1")))

    async def overtaken(self) -> None:
        """Let the repeat take the key over and end first; both have heard their answers at the end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.first)
            await trio.sleep(1)
            self.flows.clock.advance(3)
            self.flows.hashing.seconds = 0
            self.heard.append(await self.flows.signup.register(visit(), form(key="k-1")))


@pytest.mark.parametrize("enumeration", ["open", "strict"])
async def test_a_request_whose_key_was_taken_over_hears_what_the_repeat_is_told(
    autojump_clock: object, enumeration: str
) -> None:
    """One account, one mail, and one registration of the client's limit is used."""
    _ = autojump_clock
    async with Flows.running(strict=enumeration == "strict") as flows:
        still = Stillness(flows)
        await still.overtaken()
        assert still.heard[0] == still.heard[1]
        assert len(flows.accounts.mails) == 1
        for number in range(4):
            await flows.signup.register(visit(), form(f"user{number}@example.com"))
        with pytest.raises(RateLimited):
            await flows.signup.register(visit(), form("bob@example.com"))


class Pair:
    """Two processes over one store of keys, asked for the same registration with the same key."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.keys = FakeIdempotencyKeys(self.clock)
        self.first, self.second = (Idempotency(self.keys, Keyring({"k1": b"1" * 32})) for _ in range(2))

    async def ask(self, process: Idempotency, work: Callable[[IdempotencyClaim], Awaitable[Registered]]) -> Registered:
        """Have one of them do the work."""

        async def claimed(claim: IdempotencyClaim | None) -> Registered:
            assert claim is not None
            return await work(claim)

        return await process.once(form(key="k-1"), ADA, Password.typed(PASSWORD), claimed, lambda: None)

    async def register(self, claim: IdempotencyClaim) -> Registered:
        """Register, as the store does it."""
        await trio.lowlevel.checkpoint()
        self.keys.bind(claim, DONE)
        return DONE


async def test_a_refusal_after_the_take_over_is_not_heard() -> None:
    """The address is taken, by the repeat: the first request hears that registration."""
    pair = Pair()

    async def late(_: IdempotencyClaim) -> Registered:
        pair.clock.advance(3)
        assert await pair.ask(pair.second, pair.register) == DONE
        raise EmailTaken

    assert await pair.ask(pair.first, late) == DONE


async def test_a_key_that_the_repeat_gave_back_is_worked_for_again() -> None:
    """What the repeat was refused says nothing about the first request, whose own attempt did not count."""
    pair = Pair()
    attempts = iter([True, False])

    async def refused(_: IdempotencyClaim) -> Registered:
        await trio.lowlevel.checkpoint()
        raise NotAccepted(1)

    async def late(claim: IdempotencyClaim) -> Registered:
        if next(attempts):
            pair.clock.advance(3)
            with pytest.raises(NotAccepted):
                await pair.ask(pair.second, refused)
            raise RequestInProgress(1)
        return await pair.register(claim)

    assert await pair.ask(pair.first, late) == DONE


async def test_a_key_is_kept_for_as_long_as_its_work_runs(autojump_clock: object) -> None:
    """A renewal that fails does no harm; once the work has ended nothing is renewed."""
    _ = autojump_clock
    pair = Pair()

    async def long(claim: IdempotencyClaim) -> Registered:
        await trio.sleep(0.5)
        for second in range(20):
            pair.keys.deaf = StoreUnavailable() if second % 2 else None
            await trio.sleep(1)
            pair.clock.advance(1)
            assert await pair.keys.claim(replace(claim, claim=uuid4()), b"body") is not None
        raise AnswerLost

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.first.renewing)
        with pytest.raises(AnswerLost):
            await pair.ask(pair.first, long)
        for _second in range(3):
            await trio.sleep(1)
            pair.clock.advance(1)
        assert await pair.ask(pair.second, pair.register) == DONE
        nursery.cancel_scope.cancel()
