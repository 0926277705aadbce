"""Calls at the same time, and what each of them came to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from actors.domain.errors import Refusal
from actors.kit.mailbox import MachineError

ErrorT = TypeVar("ErrorT", bound=Exception)


class Callers:
    """Starts calls beside the test; `heard` has what each returned, or the type of its refusal, as they ended."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.heard: list[Any] = []

    def call(self, function: Callable[..., Awaitable[Any]], *arguments: object) -> None:
        """Start a call."""
        self._nursery.start_soon(self._listen, function, arguments)

    async def call_in_turn(self, function: Callable[..., Awaitable[Any]], *arguments: object) -> None:
        """Start a call, and return once it and everything else waits for something."""
        self.call(function, *arguments)
        await trio.testing.wait_all_tasks_blocked()

    async def _listen(self, function: Callable[..., Awaitable[Any]], arguments: tuple[object, ...]) -> None:
        try:
            self.heard.append(await function(*arguments))
        except (Refusal, MachineError) as error:
            self.heard.append(type(error))


async def refused(kind: type[ErrorT], call: Awaitable[Any]) -> ErrorT:
    """Await a call that must be refused in this way, and return the refusal."""
    with pytest.raises(kind) as caught:
        await call
    return caught.value


@asynccontextmanager
async def callers() -> AsyncIterator[Callers]:
    """Wait, at the end of the body, until all calls have ended."""
    async with trio.open_nursery() as nursery:
        yield Callers(nursery)
