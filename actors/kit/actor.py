"""One loop that drains a mailbox and settles each batch before it takes the next one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from actors.kit.mailbox import AnswerLost, Ask, MachineError, MessageT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from actors.kit.mailbox import Envelope

BATCH_LIMIT = 64  # beyond it a batch gains nothing and its first message waits for the last


@contextmanager
def share_failure(envelopes: Sequence[Envelope[Any]]) -> Iterator[None]:
    """Refuse these envelopes, and no others of their batch, when the body fails with a machine error.

    Use it around each statement of a batch that needs several: one that fails says nothing about the next.
    """
    try:
        yield
    except MachineError as error:
        for envelope in envelopes:
            envelope.refuse(error)


class Actor(ABC, Generic[MessageT]):
    """A long-lived owner of one concern, and of the messages of its type.

    `handle` settles every envelope of a batch. Errors of the types in `refusals`, and machine errors, go to the
    asker; any other is a crash: unsettled askers get AnswerLost and the supervisor builds a new actor around
    the same mailbox. A batch that fails as a whole with one of `refusals` refuses all that is unsettled. A crash
    over several asks is tried again ask by ask, so that a poisonous one takes nobody else with it: what an ask
    does must be safe to repeat. Offers are not tried again.
    """

    name: ClassVar[str]
    capacity: ClassVar[int] = 1024
    lanes: ClassVar[int] = 1
    batch_limit: ClassVar[int] = BATCH_LIMIT
    refusals: ClassVar[tuple[type[Exception], ...]] = ()

    async def started(self) -> None:
        """Prepare, before the first message; the supervisor waits for it."""

    async def stopped(self) -> None:
        """Leave nothing behind, after the last message; called on drain, not after a crash."""

    def admit(self, ahead: int) -> None:
        """Refuse an ask that has `ahead` others before it, with NotAccepted; the default takes all."""

    @abstractmethod
    async def handle(self, envelopes: Sequence[Envelope[MessageT]]) -> None:
        """Settle each envelope: one statement or one pipeline for the batch."""

    async def work(self, envelopes: Sequence[Envelope[MessageT]]) -> None:
        """Handle one batch and leave no envelope unsettled, on cancel neither; a crash is raised after that."""
        try:
            crash = await self._attempt(envelopes)
            if crash is None:
                return
            if len(envelopes) > 1:
                for envelope in envelopes:
                    if isinstance(envelope.message, Ask) and not envelope.settled:
                        await self._attempt([envelope])
            raise crash
        finally:
            for envelope in envelopes:
                if not envelope.settled:
                    envelope.refuse(AnswerLost())

    async def _attempt(self, envelopes: Sequence[Envelope[MessageT]]) -> Exception | None:
        """Handle the envelopes and return the crash, if it is one."""
        try:
            await self.handle(envelopes)
        except Exception as error:  # noqa: BLE001 - a crash is raised by `work`, after the neighbours' turn
            if not isinstance(error, (MachineError, *self.refusals)):
                return error
            for envelope in envelopes:
                envelope.refuse(error)
        return None
