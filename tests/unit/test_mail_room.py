from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio

from actors.delivery import Delivered, Outcome
from actors.domain.code import Keyring
from actors.domain.mail import MailState
from actors.mail_room import RINGS_KEPT, MailRoom
from actors.ports import StoreUnavailable
from tests.fakes.outbox import MemoryOutbox

if TYPE_CHECKING:
    from actors.domain.mail import ClaimedMail
    from actors.kit.mailbox import MachineError

KEYRING = Keyring({"k1": b"1" * 32})


class Book:
    """Notes what the mail room tells, and delivers by sleeping `takes` seconds in turn."""

    def __init__(self, outbox: MemoryOutbox, *takes: float) -> None:
        self.outbox = outbox
        self.takes = cycle(takes or (0.0,))
        self.busy = self.busiest = 0
        self.ended: list[Delivered] = []
        self.errors: list[MachineError] = []

    async def __call__(self, mail: ClaimedMail) -> Delivered:
        """Deliver."""
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            await anyio.sleep(next(self.takes))
            await self.outbox.accepted(mail)
        finally:
            self.busy -= 1
        return Delivered(mail, Outcome.ACCEPTED)

    def delivered(self, delivered: Delivered) -> None:
        """Note a delivery."""
        self.ended.append(delivered)

    def unreachable(self, error: MachineError) -> None:
        """Note an error."""
        self.errors.append(error)


def room(outbox: MemoryOutbox, book: Book, at_once: int = 4) -> MailRoom:
    """Build the room under test, without jitter."""
    return MailRoom(outbox, book, book, at_once=at_once, chance=lambda: 0.5)


async def test_what_is_due_leaves_at_the_start_without_a_ring(autojump_clock: object) -> None:
    """Mails owed while no worker ran leave as soon as one starts."""
    _ = autojump_clock
    outbox = MemoryOutbox()
    rows = [outbox.owe(KEYRING.code_id(uuid4())) for _ in range(3)]
    book = Book(outbox)
    mail_room = room(outbox, book)
    async with anyio.create_task_group() as group:
        group.start_soon(mail_room.run)
        await anyio.sleep(0.1)
        assert {row.state for row in rows} == {MailState.ACCEPTED}
        mail_room.close()


async def test_a_mail_leaves_within_a_second_and_a_quarter_without_redis(autojump_clock: object) -> None:
    """The look for due mails needs no ring."""
    _ = autojump_clock
    outbox = MemoryOutbox()
    book = Book(outbox)
    mail_room = room(outbox, book)
    async with anyio.create_task_group() as group:
        group.start_soon(mail_room.run)
        await anyio.sleep(0.1)
        row = outbox.owe()
        await anyio.sleep(1.25)
        assert row.state is MailState.ACCEPTED
        mail_room.close()


async def test_a_rung_mail_leaves_at_once(autojump_clock: object) -> None:
    """A ring is worth the second that the next look would cost."""
    _ = autojump_clock
    outbox = MemoryOutbox()
    book = Book(outbox)
    mail_room = room(outbox, book)
    async with anyio.create_task_group() as group:
        group.start_soon(mail_room.run)
        await anyio.sleep(0.1)
        row = outbox.owe()
        mail_room.ring(row.id)
        await anyio.sleep(0.01)
        assert row.state is MailState.ACCEPTED
        mail_room.close()


async def test_no_more_are_claimed_than_can_be_delivered_at_once(autojump_clock: object) -> None:
    """Ten mails through two places: never three at a time, and no pause of a second between them."""
    _ = autojump_clock
    outbox = MemoryOutbox()
    rows = [outbox.owe() for _ in range(10)]
    book = Book(outbox, 0.1)
    mail_room = room(outbox, book, at_once=2)
    async with anyio.create_task_group() as group:
        group.start_soon(mail_room.run)
        await anyio.sleep(0.6)
        assert {row.state for row in rows} == {MailState.ACCEPTED}
        mail_room.close()
    assert book.busiest == 2


async def test_a_backlog_leaves_without_a_pause(autojump_clock: object) -> None:
    """A place that becomes free while the outbox is asked for others is no reason to wait for the next look."""
    _ = autojump_clock
    outbox = MemoryOutbox(latency=0.01)
    rows = [outbox.owe() for _ in range(60)]
    book = Book(outbox, 0.021, 0.027, 0.034)
    mail_room = room(outbox, book)
    async with anyio.create_task_group() as group:
        group.start_soon(mail_room.run)
        await anyio.sleep(1.0)
        assert {row.state for row in rows} == {MailState.ACCEPTED}
        mail_room.close()


async def test_closing_ends_what_runs_and_claims_nothing_more(autojump_clock: object) -> None:
    """A drained worker leaves no mail half sent."""
    _ = autojump_clock
    outbox = MemoryOutbox()
    rows = [outbox.owe() for _ in range(3)]
    book = Book(outbox, 5)
    mail_room = room(outbox, book, at_once=2)
    async with anyio.create_task_group() as group:
        group.start_soon(mail_room.run)
        await anyio.sleep(1)
        mail_room.close()
        mail_room.ring(rows[2].id)
    assert sorted(row.state for row in rows) == [MailState.ACCEPTED, MailState.ACCEPTED, MailState.QUEUED]


async def test_an_outbox_that_is_away_is_asked_again_about_once_a_second(autojump_clock: object) -> None:
    """The room outlives an outage, does not hammer through it even when rung, and delivers after it."""
    _ = autojump_clock
    outbox = MemoryOutbox(failures=[StoreUnavailable() for _ in range(5)])
    book = Book(outbox)
    mail_room = room(outbox, book)
    row = outbox.owe()
    async with anyio.create_task_group() as group:
        group.start_soon(mail_room.run)
        for _ring in range(30):
            mail_room.ring(row.id)
            await anyio.sleep(0.1)
        assert 3 <= len(book.errors) <= 5
        await anyio.sleep(5)
        assert row.state is MailState.ACCEPTED
        mail_room.close()


async def test_rings_beyond_what_is_kept_are_dropped(autojump_clock: object) -> None:
    """A flood of rings for nothing grows no memory and stops no mail."""
    _ = autojump_clock
    outbox = MemoryOutbox()
    book = Book(outbox)
    mail_room = room(outbox, book)
    for _ring in range(RINGS_KEPT + 10):
        mail_room.ring(uuid4())
    row = outbox.owe()
    mail_room.ring(row.id)
    async with anyio.create_task_group() as group:
        group.start_soon(mail_room.run)
        await anyio.sleep(2)
        assert row.state is MailState.ACCEPTED
        mail_room.close()
