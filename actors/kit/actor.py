"""One loop that drains a mailbox and settles each batch before it takes the next one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from actors.kit.mailbox import AnswerLost, Ask, MachineError, MessageT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from actors.kit.mailbox import Letter

BATCH_LIMIT = 64  # beyond it a batch gains nothing and its first message waits for the last


@contextmanager
def one_fate(letters: Sequence[Letter[Any]]) -> Iterator[None]:
    """Refuse these letters, and no others of their batch, when the body fails with a machine error.

    Around each statement of a batch with several: what is lost with one says nothing about what the next one asks.
    """
    try:
        yield
    except MachineError as error:
        for letter in letters:
            letter.refuse(error)


class Actor(ABC, Generic[MessageT]):
    """A long-lived owner of one concern, and of the messages of its type.

    `handle` settles every letter of a batch. Errors of the types in `refusals`, and machine errors, go to the
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

    def admit(self, message: Ask[Any], ahead: int) -> None:
        """Turn a message away with NotAccepted before it takes a place; the default takes all."""

    @abstractmethod
    async def handle(self, letters: Sequence[Letter[MessageT]]) -> None:
        """Settle each letter: one statement or one pipeline for the batch."""

    async def work(self, letters: Sequence[Letter[MessageT]]) -> None:
        """Handle one batch and leave no letter unsettled, on cancel neither; a crash is raised after that."""
        try:
            crash = await self._attempt(letters)
            if crash is None:
                return
            if len(letters) > 1:
                for letter in letters:
                    if isinstance(letter.message, Ask) and not letter.settled:
                        await self._attempt([letter])
            raise crash
        finally:
            for letter in letters:
                if not letter.settled:
                    letter.refuse(AnswerLost())

    async def _attempt(self, letters: Sequence[Letter[MessageT]]) -> Exception | None:
        """Handle the letters and return the crash, if it is one."""
        try:
            await self.handle(letters)
        except Exception as error:  # noqa: BLE001 - a crash is raised by `work`, after the neighbours' turn
            if not isinstance(error, (MachineError, *self.refusals)):
                return error
            for letter in letters:
                letter.refuse(error)
        return None
