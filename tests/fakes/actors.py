"""Actors for tests of their supervisor: they work, wait and crash as they are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from actors.kit.actor import Actor
from actors.kit.mailbox import Ask, NotAccepted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actors.kit.mailbox import Address, Envelope


class Broken(Exception):
    """What makes an actor crash."""


@dataclass(frozen=True, slots=True)
class Do(Ask[str]):
    """An order."""

    what: str = "work"


class Stage:
    """What the actors of a test share: a log, and a gate to hold them at."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.gate = trio.Event()
        self.built = 0
        self.crashes: list[str] = []
        self.closed = False

    def report(self, name: str, error: Exception) -> None:
        """Be the supervisor's crash report."""
        self.crashes.append(f"{name}: {type(error).__name__}")

    def actor(self, title: str, *, downstream: Address | None = None) -> Callable[[], Actor[Do]]:
        """Return how to build an actor that writes into the log."""

        class Titled(Member):
            name = title

        return lambda: Titled(self, downstream)


class Member(Actor[Do]):
    """Does one order at a time, and answers with the order and its own number."""

    batch_limit = 1

    def __init__(self, stage: Stage, downstream: Address | None) -> None:
        stage.built += 1
        self._stage = stage
        self._number = stage.built
        self._downstream = downstream

    async def stopped(self) -> None:
        """Note the end."""
        self._stage.log.append(f"{self.name} stopped")

    def admit(self, ahead: int) -> None:
        """Refuse every order on a closed stage, naming the actor that did."""
        if self._stage.closed:
            assert ahead == 0
            raise NotAccepted(retry_after=self._number)

    async def handle(self, envelopes: Sequence[Envelope[Do]]) -> None:
        """Follow the order."""
        for envelope in envelopes:
            what = envelope.message.what
            if what.startswith("wait"):
                await self._stage.gate.wait()
            if what.endswith("crash"):
                raise Broken
            if what == "pass on" and self._downstream is not None:
                await self._downstream.ask(Do())
            self._stage.log.append(f"{self.name} {what}")
            envelope.answer(f"{what} by {self._number}")
