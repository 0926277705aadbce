"""Work that goes on when the request that started it is cancelled."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar, cast

import anyio

from actors.kit.mailbox import Envelope, Offer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from anyio.abc import TaskGroup

ResultT = TypeVar("ResultT")


class BackgroundTasks:
    """Runs flows in a task group of the process instead of the task of the request.

    A web framework cancels a handler when its client disconnects. A background task is not cancelled with it, and
    closing waits for the tasks that run.
    """

    def __init__(self, group: TaskGroup) -> None:
        self._group = group

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[BackgroundTasks]:
        """Accept tasks in the body; on the way out wait for those that run."""
        async with anyio.create_task_group() as group:
            yield cls(group)

    async def run(self, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Return what `work` returns or raise what it raises; a caller that is cancelled stops nothing."""
        outcome = Envelope(Offer())

        async def task() -> None:
            try:
                outcome.answer(await work())
            except Exception as error:  # noqa: BLE001 - it is raised again in the caller
                outcome.refuse(error)

        self._group.start_soon(task)
        return cast("ResultT", await outcome.outcome())
