"""Mailboxes, envelopes and addresses: bounded, in lanes, and honest about what was not accepted."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import trio
import trio.testing
from trio.lowlevel import checkpoint

from actors.kit.mailbox import Address, AnswerLost, Ask, Envelope, Mailbox, NotAccepted, Offer
from tests.fakes.callers import callers


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


def mailbox_with(*messages: Any, capacity: int = 4) -> Mailbox:  # noqa: ANN401 - of every kind
    """Return a mailbox in which these messages wait."""
    mailbox = Mailbox(capacity, lanes=2)
    for message in messages:
        assert mailbox.put(Envelope(message), message.lane)
    return mailbox


async def words(mailbox: Mailbox, limit: int = 9) -> list[str]:
    """Take a batch and return what its envelopes say."""
    return [envelope.message.word for envelope in await mailbox.take(limit)]


async def test_the_first_lane_is_taken_before_the_second() -> None:
    """A lane is a queue, priority goes by lane, and one batch may hold both."""
    mailbox = mailbox_with(SayLater("hash"), Say("check"), Say("check too"))
    assert (mailbox.ahead(0), mailbox.ahead(1)) == (2, 3)
    assert await words(mailbox, 1) == ["check"]
    assert await words(mailbox, 2) == ["check too", "hash"]


async def test_what_finds_no_room_is_refused_and_counted() -> None:
    """A full mailbox never grows: an offer is dropped, an asker knows at once that its message was never handled."""
    mailbox = Mailbox(1)
    address = Address(mailbox)
    assert address.offer(Note("kept"))
    for _ in range(2):
        assert not address.offer(Note("dropped"))
        with pytest.raises(NotAccepted):
            await address.ask(Say("refused"))
    assert (len(mailbox), mailbox.dropped, mailbox.turned_away) == (1, 2, 2)
    assert await words(mailbox) == ["kept"]


async def test_no_envelope_is_lost_or_doubled_between_several_takers() -> None:
    """Copies that share a mailbox share the envelopes, whoever is woken first; the close ends them all."""
    mailbox = Mailbox(64)
    seen: list[str] = []

    async def taker() -> None:
        while envelopes := await mailbox.take(3):
            seen.extend(envelope.message.word for envelope in envelopes)
            await checkpoint()

    async with callers() as takers:
        for _ in range(4):
            takers.call(taker)
        for number in range(500):
            assert mailbox.put(Envelope(Say(str(number))))
            if number % 7 == 0:
                await trio.testing.wait_all_tasks_blocked()
        mailbox.close()
    assert sorted(seen, key=int) == [str(number) for number in range(500)]


async def test_a_cancelled_taker_leaves_the_envelopes_to_the_others() -> None:
    """Cancelling a take takes nothing out."""
    mailbox = mailbox_with()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mailbox.take, 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        mailbox.put(Envelope(Say("kept")))
    assert await words(mailbox) == ["kept"]


async def test_a_take_lets_others_run_even_when_envelopes_wait() -> None:
    """A busy actor cannot keep the loop for itself, and what others are about to put joins the batch."""
    mailbox = mailbox_with(Say("waiting"))
    with trio.testing.assert_checkpoints():
        await mailbox.take(1)


async def test_a_closed_mailbox_refuses_and_hands_out_the_rest() -> None:
    """Closing drains: nothing new comes in, what is inside goes out, then the end is told, also to who waits."""
    mailbox = mailbox_with(Say("inside"))
    mailbox.close()
    assert not mailbox.put(Envelope(Say("late")))
    assert await words(mailbox) == ["inside"]
    assert await mailbox.take(9) == []
    mailbox = Mailbox(1)
    async with callers() as takers:
        await takers.call_in_turn(mailbox.take, 1)
        mailbox.close()
    assert takers.heard == [[]]


async def test_an_abandoned_mailbox_refuses_what_waits_as_never_handled() -> None:
    """Envelopes that no actor will see are safe to repeat, in every lane."""
    mailbox = mailbox_with()
    async with callers() as askers:
        for message in (Say("a"), SayLater("b")):
            await askers.call_in_turn(Address(mailbox).ask, message)
        mailbox.abandon()
    assert (askers.heard, len(mailbox)) == ([NotAccepted] * 2, 0)


async def test_the_first_outcome_of_an_envelope_stands() -> None:
    """A crash after an answer takes nothing back, and an answer after a refusal gives nothing."""
    answered, refused = Envelope(Say("a")), Envelope(Say("b"))
    answered.answer("yes")
    answered.refuse(AnswerLost())
    refused.refuse(NotAccepted(retry_after=3))
    refused.answer("too late")
    assert await answered.outcome() == "yes"
    with pytest.raises(NotAccepted, check=lambda error: error.retry_after == 3):
        await refused.outcome()


async def test_an_error_that_refuses_many_keeps_no_frames_of_the_others() -> None:
    """Askers that share one error do not pile their tracebacks up on it."""
    error = NotAccepted()
    depths: set[int] = set()
    for word in ("a", "b", "c"):
        envelope = Envelope(Say(word))
        envelope.refuse(error)
        with pytest.raises(NotAccepted):
            await envelope.outcome()
        depths.add(len(traceback.extract_tb(error.__traceback__)))
    assert len(depths) == 1


async def test_an_asker_that_is_cancelled_stops_nothing() -> None:
    """An accepted message stays in the mailbox when its asker leaves."""
    mailbox = mailbox_with()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Address(mailbox).ask, Say("accepted"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    (envelope,) = await mailbox.take(9)
    assert (envelope.message, envelope.settled) == (Say("accepted"), False)


async def test_a_message_can_be_turned_away_before_it_takes_a_place() -> None:
    """`admit` sees the number of envelopes ahead; what it refuses is counted and never put, the rest is answered."""

    def admit(ahead: int) -> None:
        if ahead:
            raise NotAccepted(retry_after=ahead)

    mailbox = mailbox_with()
    address = Address(mailbox, admit)
    async with callers() as askers:
        await askers.call_in_turn(address.ask, Say("hello"))
        for _ in range(2):
            with pytest.raises(NotAccepted, check=lambda error: error.retry_after == 1):
                await address.ask(Say("second"))
        assert (len(mailbox), mailbox.turned_away) == (1, 2)
        (envelope,) = await mailbox.take(9)
        envelope.answer("hello back")
    assert askers.heard == ["hello back"]
