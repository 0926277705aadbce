"""One batch of an actor: every envelope gets an outcome, and a bad one takes no neighbour with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing

from actors.kit.actor import Actor
from actors.kit.mailbox import AnswerLost, Ask, Envelope, NotAccepted, Offer


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


async def work(*messages: Do | Hear) -> tuple[list[object], list[list[str]], bool]:
    """Have a worker handle one batch; return what each asker heard, the batches of it, and whether it crashed."""
    worker, crashed = Worker(), False
    envelopes = [Envelope(message) for message in messages]
    try:
        await worker.work(envelopes)
    except Broken:
        crashed = True
    heard: list[object] = []
    for envelope in envelopes:
        assert envelope.settled
        try:
            heard.append(await envelope.outcome())
        except (Refused, AnswerLost, NotAccepted) as error:
            heard.append(type(error))
    return heard, worker.batches, crashed


CASES = {
    # the orders of a batch, what their askers hear, and what is tried alone after a crash
    "a batch is handled in one call": (["a", "b"], ["a", "b"], []),
    "a refusal of the batch goes to all that are unsettled": (
        ["answer first", "Refused", "b"],
        ["answered", Refused, Refused],
        [],
    ),
    "a machine error is no crash": (["NotAccepted", "b"], [NotAccepted, NotAccepted], []),
    "a poisonous ask takes only itself": (
        ["a", "Broken", "answer first", "b"],
        ["a", AnswerLost, "answered", "b"],
        [["a"], ["Broken"], ["b"]],
    ),
    "a lone crash is not tried again": (["Broken"], [AnswerLost], []),
    "what the actor forgot hears that its answer is lost": (["forget", "b"], [AnswerLost, "b"], []),
}


@pytest.mark.parametrize(("orders", "heard", "alone"), CASES.values(), ids=CASES)
async def test_every_asker_gets_an_outcome(orders: list[str], heard: list[object], alone: list[list[str]]) -> None:
    """Each its own; a crash is raised after that."""
    assert await work(*map(Do, orders)) == (heard, [orders, *alone], "Broken" in orders)


async def test_an_offer_in_a_crashed_batch_is_not_tried_again() -> None:
    """What an offer did may not be safe to repeat, and nobody waits for it."""
    _, batches, _ = await work(Hear("counted"), Do("Broken"), Do("a"))
    assert batches[1:] == [["Broken"], ["a"]]


async def test_a_cancelled_batch_loses_its_answers() -> None:
    """Cancelled in the middle of a batch, the actor cannot know what was done."""
    envelope = Envelope(Do("hang"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Worker().work, [envelope])
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(AnswerLost):
        await envelope.outcome()
