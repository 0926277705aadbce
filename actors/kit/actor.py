"""One loop that drains a mailbox and settles each batch before it takes the next one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from actors.kit.mailbox import AnswerLost, Ask, MachineError, MessageT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from actors.kit.mailbox import Envelope

BATCH_LIMIT = 64  # beyond it a batch gains nothing and its first message waits for the last


def only(kind: type[MessageT], envelopes: Sequence[Envelope[Any]]) -> list[Envelope[MessageT]]:
    """Return the envelopes whose messages are of this kind, in their order."""
    return [envelope for envelope in envelopes if isinstance(envelope.message, kind)]


class Actor(ABC, Generic[MessageT]):
    """A long-lived owner of one concern, and of the messages of its type.

    `handle` settles every envelope of a batch. Errors of the types in `refusals`, and machine errors, go to the
    asker; any other is a crash: unsettled askers get AnswerLost and the supervisor builds a new actor around
    the same mailbox. A batch that fails as a whole with one of `refusals` refuses all that is unsettled. A crash
    over several asks is tried again ask by ask, so that a poisonous one takes nobody else with it: what an ask
    does must be safe to repeat. Offers are not tried again.
    """

    name: ClassVar[str]
    capacity: ClassVar[int] = 4096  # a burst waits here: full batches empty it in a fraction of a second
    lanes: ClassVar[int] = 1
    batch_limit: ClassVar[int] = BATCH_LIMIT
    refusals: ClassVar[tuple[type[Exception], ...]] = ()

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
            await self._attempt(envelopes)
        except Exception:
            if len(envelopes) > 1:
                for envelope in envelopes:
                    if isinstance(envelope.message, Ask) and not envelope.settled:
                        with suppress(Exception):  # the batch's crash is raised below
                            await self._attempt([envelope])
            raise
        finally:
            for envelope in envelopes:
                if not envelope.settled:
                    envelope.refuse(AnswerLost())

    async def _attempt(self, envelopes: Sequence[Envelope[MessageT]]) -> None:
        with self.share_failure(envelopes):
            await self.handle(envelopes)

    @contextmanager
    def share_failure(self, envelopes: Sequence[Envelope[Any]]) -> Iterator[None]:
        """Refuse these envelopes, and no others of their batch, when the body fails with a refusal or a machine error.

        Use it around each statement of a batch that needs several: one that fails says nothing about the next.
        """
        answers: tuple[type[Exception], ...] = (MachineError, *self.refusals)
        try:
            yield
        except answers as error:
            for envelope in envelopes:
                envelope.refuse(error)
