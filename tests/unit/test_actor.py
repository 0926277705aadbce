"""One batch of an actor: every envelope gets an outcome, and a bad one takes no neighbour with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from actors.kit.actor import Actor
from actors.kit.mailbox import AnswerLost, Ask, Envelope, NotAccepted, Offer

if TYPE_CHECKING:
    from collections.abc import Sequence


class Refused(Exception):
    """A refusal that the actor below declares."""


class Broken(Exception):
    """An error that it does not declare: a crash."""


@dataclass(frozen=True, slots=True)
class Do(Ask[str]):
    """An order that is answered with itself."""

    what: str


@dataclass(frozen=True, slots=True)
class Hear(Offer):
    """An order that nobody waits for."""

    what: str


class Worker(Actor[Any]):
    """Does what it is told, all in one go, and remembers the batches it was given."""

    name = "Worker"
    refusals = (Refused,)

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    async def handle(self, envelopes: Sequence[Envelope[Any]]) -> None:
        """Crash or refuse as ordered, else answer."""
        orders = [envelope.message.what for envelope in envelopes]
        self.batches.append(orders)
        for envelope, order in zip(envelopes, orders, strict=True):
            if order == "answer first":
                envelope.answer("answered")
        for error in (Refused, NotAccepted, Broken):
            if error.__name__ in orders:
                raise error
        if "hang" in orders:
            await trio.sleep_forever()
        for envelope, order in zip(envelopes, orders, strict=True):
            if order != "forget":
                envelope.answer(order)


async def outcomes(envelopes: Sequence[Envelope[Any]]) -> list[object]:
    """Return each envelope's answer, or the type of its error."""
    heard: list[object] = []
    for envelope in envelopes:
        assert envelope.settled
        try:
            heard.append(await envelope.outcome())
        except (Refused, AnswerLost, NotAccepted) as error:
            heard.append(type(error))
    return heard


async def test_a_batch_is_handled_in_one_call() -> None:
    """Group commit: one call settles all that waited."""
    worker, envelopes = Worker(), [Envelope(Do("a")), Envelope(Do("b"))]
    await worker.work(envelopes)
    assert worker.batches == [["a", "b"]]
    assert await outcomes(envelopes) == ["a", "b"]


async def test_a_declared_refusal_goes_to_all_that_are_unsettled() -> None:
    """A batch refused as a whole is no crash, and what was answered stays answered."""
    worker, envelopes = Worker(), [Envelope(Do("answer first")), Envelope(Do("Refused")), Envelope(Do("b"))]
    await worker.work(envelopes)
    assert await outcomes(envelopes) == ["answered", Refused, Refused]


async def test_a_machine_error_goes_to_the_askers_without_a_crash() -> None:
    """A store that is away is no reason to build a new actor."""
    worker, envelopes = Worker(), [Envelope(Do("NotAccepted")), Envelope(Do("b"))]
    await worker.work(envelopes)
    assert worker.batches == [["NotAccepted", "b"]]
    assert await outcomes(envelopes) == [NotAccepted, NotAccepted]


async def test_a_poisonous_ask_takes_only_itself() -> None:
    """After a crash the asks of the batch are tried alone; the crash is raised all the same."""
    worker = Worker()
    envelopes = [Envelope(Do("a")), Envelope(Do("Broken")), Envelope(Do("answer first")), Envelope(Do("b"))]
    with pytest.raises(Broken):
        await worker.work(envelopes)
    assert await outcomes(envelopes) == ["a", AnswerLost, "answered", "b"]
    assert worker.batches[1:] == [["a"], ["Broken"], ["b"]]


async def test_an_offer_in_a_crashed_batch_is_not_tried_again() -> None:
    """What an offer did may not be safe to repeat, and nobody waits for it."""
    worker = Worker()
    with pytest.raises(Broken):
        await worker.work([Envelope(Hear("counted")), Envelope(Do("Broken")), Envelope(Do("a"))])
    assert worker.batches[1:] == [["Broken"], ["a"]]


async def test_a_lone_crash_is_not_tried_again() -> None:
    """A batch of one has no neighbours to save."""
    worker, envelopes = Worker(), [Envelope(Do("Broken"))]
    with pytest.raises(Broken):
        await worker.work(envelopes)
    assert worker.batches == [["Broken"]]
    assert await outcomes(envelopes) == [AnswerLost]


async def test_a_envelope_that_the_actor_forgot_hears_that_its_answer_is_lost() -> None:
    """No asker waits for ever."""
    worker, envelopes = Worker(), [Envelope(Do("forget")), Envelope(Do("b"))]
    await worker.work(envelopes)
    assert await outcomes(envelopes) == [AnswerLost, "b"]


async def test_a_cancelled_batch_loses_its_answers() -> None:
    """Cancelled in the middle of a batch, the actor cannot know what was done."""
    worker, envelopes = Worker(), [Envelope(Do("hang"))]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.work, envelopes)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert await outcomes(envelopes) == [AnswerLost]
