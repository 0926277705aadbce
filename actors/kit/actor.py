"""One loop that drains a mailbox and settles each batch before it takes the next one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from actors.kit.mailbox import AnswerLost, MachineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.kit.mailbox import Ask, Letter, Mailbox

BATCH_LIMIT = 64  # beyond it a batch gains nothing and its first message waits for the last


class Actor(ABC):
    """A long-lived owner of one concern.

    `handle` settles every letter of a batch. Errors of the types in `refusals`, and machine errors, go to the
    asker; any other is a crash: unsettled askers get AnswerLost and the supervisor builds a new actor around
    the same mailbox. A batch that fails as a whole with one of `refusals` refuses all that is unsettled.
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
    async def handle(self, letters: Sequence[Letter]) -> None:
        """Settle each letter: one statement or one pipeline for the batch."""

    async def run(self, mailbox: Mailbox) -> None:
        """Handle batches until the mailbox is closed and empty; a crash settles its letters and is raised."""
        while letters := await mailbox.take(self.batch_limit):
            try:
                await self.handle(letters)
            except (MachineError, *self.refusals) as refusal:
                for letter in letters:
                    letter.refuse(refusal)
            finally:
                for letter in letters:
                    letter.refuse(AnswerLost())
