"""Calls on threads of their own: one contract on both kinds of loop."""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from actors.kit.mailbox import NotAccepted
from service.threads import DeadlinePassed, Threads
from tests.servers.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PATIENCE = 5.0
LOOPS: dict[str, dict[str, Any]] = {
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "asyncio": {"backend": "asyncio"},
    "trio": {"backend": "trio"},
}


class Gate:
    """A call that runs until the test lets it end."""

    def __init__(self) -> None:
        self.runs = threading.Semaphore(0)
        self._open = threading.Event()
        self.ended = 0

    def __call__(self) -> str:
        """Say that it runs, wait, and return."""
        self.runs.release()
        assert self._open.wait(PATIENCE)
        self.ended += 1
        return "through"

    def open(self) -> None:
        """Let all calls end."""
        self._open.set()


async def hands_over_outcomes() -> None:
    """Give every asker the outcome of its own call; calls run in the order in which they come."""
    asked: list[int] = []
    order: list[int] = []
    answers: dict[int, int] = {}

    def work(number: int) -> int:
        order.append(number)
        return number * 2

    async def ask(threads: Threads, number: int) -> None:
        asked.append(number)
        answers[number] = await threads.run(partial(work, number))

    async with Threads("test", 1) as threads, anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(ask, threads, number)
    assert answers == {number: number * 2 for number in range(200)}
    assert order == asked


async def raises_what_the_call_raises() -> None:
    """Raise a call's error in its asker; the thread takes the next call."""

    def broken() -> None:
        raise LookupError("this one")

    async with Threads("test", 1) as threads:
        with pytest.raises(LookupError, match="this one"):
            await threads.run(broken)
        assert await threads.run(lambda: 7) == 7


async def refuses_when_full() -> None:
    """Refuse a call at once, and never run it, while as many as the limit wait or run."""
    gate = Gate()
    async with Threads("test", 1, limit=3) as threads:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(threads.run, gate)
            await until(lambda: threads.statistics().busy == 1)
            assert threads.statistics().waiting == 2
            with pytest.raises(NotAccepted):
                await threads.run(gate)
            gate.open()
        assert await threads.run(gate) == "through"
        assert gate.ended == 4
        assert threads.statistics().refused == 1


async def an_asker_that_leaves_stops_nothing() -> None:
    """Let a cancelled asker go at once; its call runs to its end."""
    gate = Gate()
    async with Threads("test", 1) as threads:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(threads.run, gate)
                await until(lambda: gate.runs.acquire(blocking=False))
                scope.cancel()
        assert gate.ended == 0
        gate.open()
        await until(lambda: gate.ended == 1)
        assert await threads.run(lambda: "next") == "next"


async def a_late_call_keeps_nobody() -> None:
    """Let every asker go at the deadline, of a call that runs or waits; its thread runs it all the same."""
    gate = Gate()
    late = 0

    async def ask(threads: Threads) -> None:
        nonlocal late
        with pytest.raises(DeadlinePassed):
            await threads.run(gate)
        late += 1

    async with Threads("test", 1, deadline=0.1) as threads:
        assert await threads.run(lambda: "quick") == "quick"
        begun = anyio.current_time()
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask, threads)
        assert 0.09 < anyio.current_time() - begun < 1.0
        assert (late, threads.statistics().late) == (3, 3)
        gate.open()
        await until(lambda: gate.ended == 3)
        assert await threads.run(lambda: "quick") == "quick"


async def closing_lets_running_calls_end() -> None:
    """Let a call end that runs when the threads close; refuse those that wait, and later ones."""
    gate = Gate()
    outcomes: list[str] = []

    async def ask(threads: Threads) -> None:
        try:
            outcomes.append(await threads.run(gate))
        except NotAccepted:
            outcomes.append("refused")

    async with anyio.create_task_group() as group, Threads("test", 1) as threads:
        for _ in range(3):
            group.start_soon(ask, threads)
        await until(lambda: gate.runs.acquire(blocking=False))
        threading.Timer(0.05, gate.open).start()
    assert sorted(outcomes) == ["refused", "refused", "through"]
    with pytest.raises(NotAccepted):
        await threads.run(gate)


async def test_closing_waits_for_no_call_that_hangs() -> None:
    """A call that does not end delays the stop by two seconds at most; its asker goes too."""
    gate = Gate()

    async def ask(threads: Threads) -> None:
        with pytest.raises(DeadlinePassed):
            await threads.run(gate)

    async with anyio.create_task_group() as group:
        async with Threads("test", 1, deadline=60) as threads:
            group.start_soon(ask, threads)
            await until(lambda: gate.runs.acquire(blocking=False))
            begun = anyio.current_time()
        assert 1.9 < anyio.current_time() - begun < 2.5
    gate.open()


CONTRACT = (
    hands_over_outcomes,
    raises_what_the_call_raises,
    refuses_when_full,
    an_asker_that_leaves_stops_nothing,
    a_late_call_keeps_nobody,
    closing_lets_running_calls_end,
)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_threads(loop: str, promise: Callable[[], Awaitable[None]]) -> None:
    """Each promise of `Threads` holds on each loop."""
    anyio.run(promise, **LOOPS[loop])


async def test_nice_threads_give_way_to_everything_else() -> None:
    """Threads that are nice run at a lower priority than the loop, and others do not."""

    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    async with Threads("nice", 1, nice=5) as nice, Threads("plain", 1) as plain:
        assert await nice.run(priority) == min(19, priority() + 5)
        assert await plain.run(priority) == priority()


def test_an_outcome_after_the_end_of_the_loop_harms_nobody() -> None:
    """A thread that ends its call when the loop has gone ends too."""
    gate = Gate()

    async def leave() -> None:
        async with anyio.create_task_group() as group, Threads("left", 1, deadline=0.05) as threads:
            group.start_soon(threads.run, gate)
            await until(lambda: gate.runs.acquire(blocking=False))
            group.cancel_scope.cancel()

    anyio.run(leave)
    gate.open()
    [thread] = [thread for thread in threading.enumerate() if thread.name == "left-0"]
    thread.join(PATIENCE)
    assert not thread.is_alive()
