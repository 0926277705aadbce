"""Keeps a bounded number of deliveries running: at once for mails that are rung for, within a second for all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import anyio

from actors.kit.mailbox import MachineError

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from actors.delivery import Delivered
    from actors.domain.mail import ClaimedMail
    from actors.mail_ports import Outbox

LOOK_SECONDS = 1.0  # between looks for what is due; the rings of Redis only shorten it
RINGS_KEPT = 4096  # more are dropped: the next look finds their mails


class Deliver(Protocol):
    """Delivers one claimed mail and never raises."""

    async def __call__(self, mail: ClaimedMail) -> Delivered:
        """Return what became of it."""
        ...


class MailRoomReport(Protocol):
    """Where the mail room tells what happens."""

    def delivered(self, delivered: Delivered) -> None:
        """Tell how a delivery ended."""
        ...

    def unreachable(self, error: MachineError) -> None:
        """Tell that the outbox could not be asked; the room goes on."""
        ...


class MailRoom:
    """Claims due mails and has them delivered, at most `at_once` at a time.

    A mail is claimed only when its delivery can start at once, so no lease runs while it waits. `chance` in [0, 1)
    spreads the looks of several processes.
    """

    def __init__(
        self, outbox: Outbox, deliver: Deliver, report: MailRoomReport, *, at_once: int, chance: Callable[[], float]
    ) -> None:
        self._outbox = outbox
        self._deliver = deliver
        self._report = report
        self._at_once = self._free = at_once
        self._chance = chance
        self._rung: dict[UUID, None] = {}
        self._stirred = anyio.Event()
        self._closing = anyio.Event()
        self._next_look = 0.0

    @property
    def delivering(self) -> int:
        """How many deliveries run."""
        return self._at_once - self._free

    def ring(self, mail_id: UUID) -> None:
        """Have a mail delivered soon; ignored when too many wait, or once the room closes."""
        if len(self._rung) < RINGS_KEPT and not self._closing.is_set():
            self._rung[mail_id] = None
            self._stirred.set()

    def close(self) -> None:
        """Claim nothing more; `run` returns once the deliveries that run have ended."""
        self._closing.set()
        self._stirred.set()

    async def run(self) -> None:
        """Deliver until closed. Cancelled, it abandons what runs: the leases end and others take the mails over."""
        self._next_look = anyio.current_time()
        async with anyio.create_task_group() as deliveries:
            while not self._closing.is_set():
                mails = await self._claim(self._free) if self._free else []
                self._free -= len(mails)
                for mail in mails:
                    deliveries.start_soon(self._one, mail)
                await self._rest()

    async def _one(self, mail: ClaimedMail) -> None:
        try:
            self._report.delivered(await self._deliver(mail))
        finally:
            self._free += 1
            self._stirred.set()

    async def _claim(self, places: int) -> list[ClaimedMail]:
        """Claim mails for so many free places, of which there may be more by the end: what is due, or was rung for."""
        try:
            if anyio.current_time() >= self._next_look:
                mails = await self._outbox.claim_due(places)
                if len(mails) < places:  # else more may wait: look again as soon as a place is free
                    self._next_look = anyio.current_time() + LOOK_SECONDS * (0.75 + self._chance() / 2)
                return mails
            rung = list(self._rung)[:places]
            for mail_id in rung:
                del self._rung[mail_id]
            return await self._outbox.claim(rung) if rung else []
        except MachineError as error:
            self._report.unreachable(error)
            self._rung.clear()  # they would only be asked for in vain, again and again; looks find them
            self._next_look = anyio.current_time() + max(LOOK_SECONDS, error.retry_after)
            return []

    async def _rest(self) -> None:
        """Wait until there is something to claim and a place to deliver it, or the room closes."""
        while not self._closing.is_set():
            looking = self._free and anyio.current_time() >= self._next_look
            if looking or (self._free and self._rung):
                return
            self._stirred = anyio.Event()
            with anyio.move_on_after(self._next_look - anyio.current_time() if self._free else None):
                await self._stirred.wait()
