"""Traces of what actors are asked: a span for the asker's wait, and one for the batch in which it was handled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from opentelemetry.trace import Link, SpanKind, set_span_in_context

from actors.kit.mailbox import Address
from actors.ports import NewAccount, NewCode
from service.tracing.spans import span, traceparent_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.trace import Span, Tracer

    from actors.kit.actor import Actor
    from actors.kit.mailbox import Ask, Letter
    from actors.kit.supervisor import Supervisor

AnswerT = TypeVar("AnswerT")

OWING = (NewAccount, NewCode)  # what a message carries that owes a mail


class Asks:
    """The asks of one actor that are on their way, by message."""

    def __init__(self, tracer: Tracer, actor: str) -> None:
        self.tracer = tracer
        self.actor = actor
        self._asking: dict[int, Span] = {}

    def began(self, message: object, one: Span) -> None:
        """Remember who waits for this message's answer; the caller keeps the message until `ended`."""
        self._asking[id(message)] = one

    def ended(self, message: object) -> None:
        """Forget it."""
        self._asking.pop(id(message), None)

    def of(self, letters: Sequence[Letter[Any]]) -> list[Span]:
        """Return the spans of those who wait for these letters."""
        found = (self._asking.get(id(letter.message)) for letter in letters)
        return [one for one in found if one is not None]


class TracedAddress(Address):
    """The same mailbox; asking it is a span of the asker's trace, from the wait for a place to the answer."""

    def __init__(self, inner: Address, asks: Asks) -> None:
        super().__init__(inner._mailbox, inner._admit)  # noqa: SLF001 - it is the address, with a span around
        self._asks = asks

    async def ask(self, message: Ask[AnswerT]) -> AnswerT:
        """Return the actor's answer, as Address does."""
        owing = _owing(message)
        kind = SpanKind.PRODUCER if owing else SpanKind.INTERNAL
        with span(self._asks.tracer, f"{self._asks.actor} {type(message).__name__}", kind=kind) as one:
            if owing:  # the mail keeps this span's place, so that its delivery joins the trace
                traced = replace(getattr(message, owing), traceparent=traceparent_of(one.get_span_context()))
                message = replace(cast("Any", message), **{owing: traced})
            self._asks.began(message, one)
            try:
                return await super().ask(message)
            finally:
                self._asks.ended(message)


def _owing(message: object) -> str | None:
    """Return the field of a message that owes a mail."""
    return next((name for name in ("account", "code") if isinstance(getattr(message, name, None), OWING)), None)


def employ(tracer: Tracer, supervisor: Supervisor, build: Callable[[], Actor[Any]], copies: int) -> Address:
    """Employ an actor whose asks and batches are traced."""
    asks = Asks(tracer, "")

    def watched() -> Actor[Any]:
        actor = build()
        asks.actor = actor.name
        handle = actor.handle

        async def traced(letters: Sequence[Letter[Any]]) -> None:
            await _batch(asks, handle, letters)

        actor.handle = traced  # type: ignore[method-assign]  # of this one actor
        return actor

    return TracedAddress(supervisor.employ(watched, copies=copies), asks)


async def _batch(asks: Asks, handle: Any, letters: Sequence[Letter[Any]]) -> None:  # noqa: ANN401 - Actor.handle
    """Handle a batch as a child of its first asker, linked to all others: one statement answers them together."""
    askers = asks.of(letters)
    if not askers:
        await handle(letters)
        return
    links = [Link(other.get_span_context()) for other in askers[1:]]
    attributes = {"vestibule.batch.size": len(letters)}
    context = set_span_in_context(askers[0])
    with span(asks.tracer, f"{asks.actor} batch", context=context, attributes=attributes, links=links):
        await handle(letters)
