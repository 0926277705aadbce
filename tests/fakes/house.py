"""Actors for tests of their supervisor: they work, wait, crash and fail to start as they are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from actors.kit.actor import Actor
from actors.kit.mailbox import Ask, NotAccepted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actors.kit.mailbox import Address, Letter


class Broken(Exception):
    """What makes an actor crash."""


@dataclass(frozen=True, slots=True)
class Do(Ask[str]):
    """An order."""

    what: str = "work"


class House:
    """What the actors of a test share: a diary, a gate to hold them at, and how often a start still fails."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.gate = trio.Event()
        self.failing_starts = 0
        self.built = 0
        self.crashes: list[str] = []

    def report(self, name: str, error: Exception) -> None:
        """Be the supervisor's crash report."""
        self.crashes.append(f"{name}: {type(error).__name__}")

    def actor(self, title: str, *, downstream: Address | None = None) -> Callable[[], Actor[Do]]:
        """Return how to build an actor that writes into the diary."""

        class Titled(Member):
            name = title

        return lambda: Titled(self, downstream)


class Member(Actor[Do]):
    """Does one order at a time, and answers with the order and its own number."""

    batch_limit = 1

    def __init__(self, house: House, downstream: Address | None) -> None:
        house.built += 1
        self._house = house
        self._number = house.built
        self._downstream = downstream

    async def started(self) -> None:
        """Fail as often as the house wants it, but for the first actor."""
        if self._house.built > 1 and self._house.failing_starts:
            self._house.failing_starts -= 1
            raise Broken
        self._house.diary.append(f"{self.name} started")

    async def stopped(self) -> None:
        """Note the end."""
        self._house.diary.append(f"{self.name} stopped")

    def admit(self, message: Ask[Any], ahead: int) -> None:
        """Turn one order away, naming the actor that did."""
        assert ahead == 0 or message != Do("nobody wants")
        if message == Do("nobody wants"):
            raise NotAccepted(retry_after=self._number)

    async def handle(self, letters: Sequence[Letter[Do]]) -> None:
        """Follow the order."""
        for letter in letters:
            what = letter.message.what
            if what.startswith("wait"):
                await self._house.gate.wait()
            if what.endswith("crash"):
                raise Broken
            if what == "pass on" and self._downstream is not None:
                await self._downstream.ask(Do())
            self._house.diary.append(f"{self.name} {what}")
            letter.answer(f"{what} by {self._number}")
