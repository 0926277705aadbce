"""Messages, the bounded mailbox they wait in, and the address that askers hold.

Two errors tell the asker what it now knows::

    MachineError
    ├── NotAccepted   never handled: safe to repeat
    └── AnswerLost    accepted, outcome unknown: repeat only what is idempotent
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

import anyio
from anyio.lowlevel import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

AnswerT = TypeVar("AnswerT")
MessageT = TypeVar("MessageT", bound="Ask[Any] | Offer")


class MachineError(Exception):
    """The service failed, not the request; `retry_after` is in seconds."""

    def __init__(self, retry_after: float = 1.0) -> None:
        super().__init__()
        self.retry_after = retry_after


class NotAccepted(MachineError):
    """The message was never handled: the asker may repeat it."""


class AnswerLost(MachineError):
    """The message was accepted and its outcome is unknown: the asker must find out before it repeats."""


class Ask(Generic[AnswerT]):
    """A message that is answered with an `AnswerT`; `lane` 0 is taken before lane 1."""

    __slots__ = ()
    lane: ClassVar[int] = 0


class Offer:
    """A message without an answer, dropped and counted when there is no room."""

    __slots__ = ()


class Envelope(Generic[MessageT]):
    """One message and its outcome.

    The first outcome stands; later ones are ignored, so a crash after an answer takes nothing back.
    """

    __slots__ = ("_done", "_error", "_value", "message")

    def __init__(self, message: MessageT) -> None:
        self.message = message
        self._done = anyio.Event()
        self._value: Any = None
        self._error: Exception | None = None

    def answer(self, value: object) -> None:
        """Give the asker its answer."""
        if not self._done.is_set():
            self._value = value
            self._done.set()

    def refuse(self, error: Exception) -> None:
        """Raise `error` in the asker instead of an answer."""
        if not self._done.is_set():
            self._error = error
            self._done.set()

    @property
    def settled(self) -> bool:
        """Whether an outcome is known."""
        return self._done.is_set()

    async def outcome(self) -> Any:  # noqa: ANN401 - typed again by Address.ask from the message
        """Wait for the outcome; cancelling the wait leaves the envelope where it is."""
        await self._done.wait()
        if self._error is not None:
            raise self._error.with_traceback(None)  # one error may refuse a batch: keep no frames of other askers
        return self._value


class Mailbox:
    """A bounded queue of envelopes in lanes of falling priority, shared by the copies of one actor.

    It never holds more than `capacity` envelopes; `dropped` counts the offers that found no room, `turned_away` the
    asks. It survives a crash of its actor: the next one handles what waits. Closing it refuses later messages; what is
    inside is still handed out.
    """

    def __init__(self, capacity: int, lanes: int = 1) -> None:
        self.capacity = capacity
        self.dropped = 0
        self.turned_away = 0
        self._lanes: tuple[deque[Envelope[Any]], ...] = tuple(deque() for _ in range(lanes))
        self._arrival = anyio.Event()
        self._closed = False

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    def ahead(self, lane: int) -> int:
        """How many waiting envelopes would be taken before a new one in `lane`."""
        return sum(len(waiting) for waiting in self._lanes[: lane + 1])

    def put(self, envelope: Envelope[Any], lane: int = 0) -> bool:
        """Put an envelope in its lane; return False when there is no room or the mailbox is closed."""
        if self._closed or len(self) >= self.capacity:
            return False
        self._lanes[lane].append(envelope)
        self._arrival.set()
        return True

    async def take(self, limit: int) -> list[Envelope[Any]]:
        """Wait for envelopes and take up to `limit`, the first lane first; an empty list means closed and drained.

        Lets other tasks run first: what they are about to put joins the batch. Cancelled, nothing was taken.
        """
        await checkpoint()
        while not len(self):
            if self._closed:
                return []
            if self._arrival.is_set():
                self._arrival = anyio.Event()
            await self._arrival.wait()
        taken: list[Envelope[Any]] = []
        for waiting in self._lanes:
            while waiting and len(taken) < limit:
                taken.append(waiting.popleft())
        return taken

    def close(self) -> None:
        """Accept nothing more; wake everyone who waits."""
        self._closed = True
        self._arrival.set()

    def abandon(self) -> None:
        """Close, and refuse what still waits with NotAccepted: nobody will handle it."""
        self.close()
        for waiting in self._lanes:
            while waiting:
                waiting.popleft().refuse(NotAccepted())


class Address:
    """Where messages to one actor go.

    `admit(ahead)` gets the number of envelopes that come first and raises NotAccepted to refuse one.
    """

    def __init__(self, mailbox: Mailbox, admit: Callable[[int], None] | None = None) -> None:
        self.mailbox = mailbox
        self.admit = admit

    async def ask(self, message: Ask[AnswerT]) -> AnswerT:
        """Return the actor's answer.

        Raises the actor's refusal, NotAccepted when there was no room, AnswerLost when the actor crashed over it. An
        asker that is cancelled stops nothing: an accepted message is still handled.
        """
        self.expect_room(message)
        envelope = Envelope(message)
        if not self.mailbox.put(envelope, message.lane):
            self.mailbox.turned_away += 1
            raise NotAccepted
        return cast("AnswerT", await envelope.outcome())

    def expect_room(self, message: Ask[Any] | type[Ask[Any]]) -> None:
        """Raise NotAccepted when the actor would not admit an ask of this kind now."""
        if self.admit is not None:
            try:
                self.admit(self.mailbox.ahead(message.lane))
            except NotAccepted:
                self.mailbox.turned_away += 1
                raise

    def offer(self, message: Offer) -> bool:
        """Hand over a message without waiting; return False, and count it, when there is no room."""
        accepted = self.mailbox.put(Envelope(message))
        self.mailbox.dropped += not accepted
        return accepted
