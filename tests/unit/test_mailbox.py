"""The mailbox: bounded, in lanes, and honest about what was not accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import trio
import trio.testing
from trio.lowlevel import checkpoint

from actors.kit.mailbox import (
    Address,
    Ask,
    Envelope,
    Mailbox,
    NotAccepted,
    Offer,
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


@dataclass(frozen=True, slots=True)
class Note(Offer):
    """A message without an answer."""

    word: str


def words(envelopes: list[Envelope[Any]]) -> list[str]:
    """Return what the envelopes say, in their order."""
    return [envelope.message.word for envelope in envelopes]


async def test_envelopes_are_taken_in_the_order_of_their_arrival() -> None:
    """One lane is a queue."""
    mailbox = Mailbox(4)
    for word in ("a", "b", "c"):
        mailbox.put(Envelope(Say(word)), 0)
    assert words(await mailbox.take(2)) == ["a", "b"]
    assert words(await mailbox.take(2)) == ["c"]


async def test_the_first_lane_is_taken_before_the_second() -> None:
    """Priority goes by lane, not by arrival, and one batch may hold both."""
    mailbox = Mailbox(4, lanes=2)
    mailbox.put(Envelope(SayLater("hash")), 1)
    mailbox.put(Envelope(Say("check")), 0)
    assert (mailbox.ahead(0), mailbox.ahead(1)) == (1, 2)
    assert words(await mailbox.take(2)) == ["check", "hash"]


async def test_an_offer_without_room_is_dropped_and_counted() -> None:
    """A full mailbox never grows and never blocks who offers."""
    mailbox = Mailbox(1)
    address = Address(mailbox)
    assert address.offer(Note("kept"))
    assert not address.offer(Note("dropped"))
    assert (len(mailbox), mailbox.dropped, mailbox.turned_away) == (1, 1, 0)


async def test_an_ask_without_room_is_refused_and_counted() -> None:
    """The asker knows at once that its message was never handled."""
    mailbox = Mailbox(1)
    mailbox.put(Envelope(Say("first")))
    with pytest.raises(NotAccepted):
        await Address(mailbox).ask(Say("second"))
    assert mailbox.turned_away == 1
    assert words(await mailbox.take(9)) == ["first"]


async def test_no_envelope_is_lost_or_doubled_between_several_takers() -> None:
    """Copies that share a mailbox share the envelopes, whoever is woken first."""
    mailbox = Mailbox(64)
    seen: list[str] = []

    async def taker() -> None:
        while envelopes := await mailbox.take(3):
            seen.extend(words(envelopes))
            await checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(taker)
        for number in range(500):
            mailbox.put(Envelope(Say(str(number))), 0)
            if number % 7 == 0:
                await trio.testing.wait_all_tasks_blocked()
        mailbox.close()
    assert sorted(seen, key=int) == [str(number) for number in range(500)]


async def test_a_cancelled_taker_leaves_the_envelopes_to_the_others() -> None:
    """Cancelling a take takes nothing out."""
    mailbox = Mailbox(4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mailbox.take, 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        mailbox.put(Envelope(Say("kept")), 0)
    assert words(await mailbox.take(1)) == ["kept"]


async def test_a_take_lets_others_run_even_when_envelopes_wait() -> None:
    """A busy actor cannot keep the loop for itself, and what others are about to put joins the batch."""
    mailbox = Mailbox(4)
    mailbox.put(Envelope(Say("waiting")), 0)
    with trio.testing.assert_checkpoints():
        await mailbox.take(1)


async def test_a_closed_mailbox_refuses_and_hands_out_the_rest() -> None:
    """Closing drains: nothing new comes in, what is inside goes out, then the end is told."""
    mailbox = Mailbox(4)
    mailbox.put(Envelope(Say("inside")), 0)
    mailbox.close()
    assert not mailbox.put(Envelope(Say("late")))
    assert words(await mailbox.take(9)) == ["inside"]
    assert await mailbox.take(9) == []


async def test_closing_wakes_takers() -> None:
    """Nobody waits for what can no longer come."""
    mailbox = Mailbox(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mailbox.take, 1)
        await trio.testing.wait_all_tasks_blocked()
        mailbox.close()


async def test_an_abandoned_mailbox_refuses_what_waits_as_never_handled() -> None:
    """Envelopes that no actor will see are safe to repeat, in every lane."""
    mailbox = Mailbox(4, lanes=2)
    envelopes: list[Envelope[Any]] = [Envelope(Say("a")), Envelope(SayLater("b"))]
    for lane, envelope in enumerate(envelopes):
        mailbox.put(envelope, lane)
    mailbox.abandon()
    for envelope in envelopes:
        with pytest.raises(NotAccepted):
            await envelope.outcome()
    assert len(mailbox) == 0
