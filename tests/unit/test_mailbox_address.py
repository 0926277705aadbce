"""Envelopes and addresses: what an asker hears, and from whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import trio
import trio.testing

from actors.kit.mailbox import (
    Address,
    AnswerLost,
    Ask,
    Envelope,
    Mailbox,
    NotAccepted,
)


@dataclass(frozen=True, slots=True)
class Say(Ask[str]):
    """A message of the first lane."""

    word: str


@dataclass(frozen=True, slots=True)
class SayLater(Ask[str]):
    """A message of the second lane."""

    lane: ClassVar[int] = 1
    word: str


def words(envelopes: list[Envelope[Any]]) -> list[str]:
    """Return what the envelopes say, in their order."""
    return [envelope.message.word for envelope in envelopes]


async def test_the_first_outcome_of_a_envelope_stands() -> None:
    """A crash after an answer takes nothing back, and an answer after a refusal gives nothing."""
    answered, refused = Envelope(Say("a")), Envelope(Say("b"))
    answered.answer("yes")
    answered.refuse(AnswerLost())
    refused.refuse(NotAccepted(retry_after=3))
    refused.answer("too late")
    assert await answered.outcome() == "yes"
    with pytest.raises(NotAccepted) as caught:
        await refused.outcome()
    assert caught.value.retry_after == 3


async def test_an_error_that_refuses_many_keeps_no_frames_of_the_others() -> None:
    """Askers that share one error do not pile their tracebacks up on it."""
    error = NotAccepted()

    def depth() -> int:
        trace, frames = error.__traceback__, 0
        while trace is not None:
            trace, frames = trace.tb_next, frames + 1
        return frames

    depths: list[int] = []
    for word in ("a", "b", "c"):
        envelope = Envelope(Say(word))
        envelope.refuse(error)
        with pytest.raises(NotAccepted):
            await envelope.outcome()
        depths.append(depth())
    assert depths[0] == depths[1] == depths[2]


async def test_an_asker_that_is_cancelled_stops_nothing() -> None:
    """An accepted message stays in the mailbox when its asker leaves."""
    mailbox = Mailbox(4)
    address = Address(mailbox)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(address.ask, Say("accepted"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    (envelope,) = await mailbox.take(9)
    assert words([envelope]) == ["accepted"]
    assert not envelope.settled


async def test_a_message_can_be_turned_away_before_it_takes_a_place() -> None:
    """`admit` sees the number of envelopes ahead; what it refuses is counted and never put."""

    def admit(ahead: int) -> None:
        if ahead:
            raise NotAccepted(retry_after=ahead)

    mailbox = Mailbox(4)
    address = Address(mailbox, admit)
    mailbox.put(Envelope(Say("first")), 0)
    with pytest.raises(NotAccepted) as caught:
        await address.ask(Say("second"))
    assert caught.value.retry_after == 1
    assert (len(mailbox), mailbox.turned_away) == (1, 1)


async def test_an_admitted_message_is_answered() -> None:
    """`ask` returns what the envelope was answered with."""

    def admit(ahead: int) -> None:
        assert ahead == 0

    mailbox = Mailbox(4)
    address = Address(mailbox, admit)
    answers: list[str] = []

    async def asker() -> None:
        answers.append(await address.ask(Say("hello")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(asker)
        (envelope,) = await mailbox.take(1)
        envelope.answer("hello back")
    assert answers == ["hello back"]
