"""Blocking drivers on a fixed set of threads, for an event loop of either kind.

`anyio.to_thread` costs 135 µs of CPU a call, a bare hop through here 10 with 16 callers (on uvloop; asyncio 12, Trio
14): the loop is woken once for all outcomes that are there, and one timer serves all deadlines.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import anyio

from actors.kit.mailbox import NotAccepted

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

ResultT = TypeVar("ResultT")

STOP_SECONDS = 2.0  # how long closing waits for calls that run; a driver's own time-outs are shorter
JOIN_SECONDS = 0.1  # for each thread to leave; this blocks the loop, which has nothing else to do
QUEUE_LIMIT = 1024  # calls that wait or run: beyond it the store is away or far too slow


class DeadlinePassed(Exception):
    """The call did not end in time; it may still run, and its outcome is lost."""


class _Call:
    """One call and its outcome; the first outcome stands. Only `settle` is called on the loop alone."""

    __slots__ = ("_error", "_value", "done", "until", "work")

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.until = 0.0
        self.done = anyio.Event()
        self._value: Any = None
        self._error: Exception | None = None

    def settle(self, value: Any, error: Exception | None) -> None:  # noqa: ANN401 - whatever the call returns - typed again by Threads.run
        if not self.done.is_set():
            self._value, self._error = value, error
            self.done.set()

    def outcome(self) -> Any:  # noqa: ANN401 - as above
        if self._error is not None:
            raise self._error
        return self._value


@dataclass(frozen=True, slots=True)
class ThreadStatistics:
    """How many calls wait, how many run, how many were refused, and how many passed their deadline."""

    waiting: int
    busy: int
    refused: int
    late: int


class Threads:
    """Runs calls on threads of its own, in the order in which they come.

    `deadline` is how many seconds an asker waits (None: for ever), `limit` how many calls may wait or run. With `nice`
    the threads give way to everything else on the machine. Each calls `leave` at its end, to close what it keeps in
    thread-local storage. An asker that is cancelled stops nothing: its call runs to its end. Closing lets the calls
    that run end, for STOP_SECONDS, and refuses those that wait with NotAccepted.
    """

    def __init__(  # noqa: PLR0913 - options with names and defaults
        self,
        name: str,
        number: int,
        *,
        deadline: float | None = None,
        limit: int = QUEUE_LIMIT,
        nice: int = 0,
        leave: Callable[[], None] | None = None,
    ) -> None:
        self._deadline = deadline
        self._nice = nice
        self._leave = leave
        self._limit = limit
        self._wake = _waker()
        self._group = anyio.create_task_group()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._outcomes: deque[tuple[_Call, Any, Exception | None]] = deque()
        self._waking = False  # whether the loop was woken and has not looked yet
        self._pending = 0
        self._timed: deque[_Call] = deque()  # in the order of their deadlines, since all wait equally long
        self._timing = anyio.Event()
        self._closed = False
        self._ended = anyio.Event()
        self._refused = self._late = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True) for index in range(number)
        ]

    async def __aenter__(self) -> Self:
        """Run the threads around the body."""
        for thread in self._threads:
            thread.start()
        await self._group.__aenter__()
        self._group.start_soon(self._watch_deadlines)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Close, and pass on what the body has raised."""
        with anyio.CancelScope(shield=True):
            await self._close()
        self._group.cancel_scope.cancel()
        return await self._group.__aexit__(kind, error, trace)

    def statistics(self) -> ThreadStatistics:
        """Return the current counts."""
        waiting = self._calls.qsize()
        return ThreadStatistics(waiting, max(0, self._pending - waiting), self._refused, self._late)

    async def run(self, work: Callable[[], ResultT]) -> ResultT:
        """Return what `work` returns, or raise what it raises.

        Raises NotAccepted when it was not run: too many calls wait, or the threads are closed. Raises DeadlinePassed
        when the deadline came first; it may run all the same, now or later.
        """
        if self._closed or self._pending >= self._limit:
            self._refused += 1
            raise NotAccepted
        call = _Call(work)
        self._pending += 1
        self._calls.put(call)
        if self._deadline is not None:
            call.until = anyio.current_time() + self._deadline
            self._timed.append(call)
            self._timing.set()
        await call.done.wait()
        return cast("ResultT", call.outcome())

    def _work(self) -> None:
        """Run calls until told to stop; in a thread."""
        if self._nice:
            _step_back(self._nice)
        while (call := self._calls.get()) is not None:
            if self._closed:
                self._hand_over(call, None, NotAccepted())
                continue
            try:
                value = call.work()
            except Exception as error:  # noqa: BLE001 - it is raised again in the asker
                self._hand_over(call, None, error)
            else:
                self._hand_over(call, value, None)
            del call
        if self._leave is not None:
            self._leave()

    def _hand_over(self, call: _Call, value: Any, error: Exception | None) -> None:  # noqa: ANN401 - as above
        """Leave an outcome for the loop, and wake it unless it was woken already; in a thread."""
        self._outcomes.append((call, value, error))
        if not self._waking:
            self._waking = True
            with suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._wake(self._settle)

    def _settle(self) -> None:
        """Give every outcome that is there to its asker; on the loop."""
        self._waking = False  # before looking: an outcome that comes now wakes the loop again
        while self._outcomes:
            call, value, error = self._outcomes.popleft()
            self._pending -= 1
            call.settle(value, error)
        if self._closed and not self._pending:
            self._ended.set()
        while self._timed and self._timed[0].done.is_set():
            self._timed.popleft()  # keep no outcome until its deadline

    async def _watch_deadlines(self) -> None:
        """Let askers go whose call is late, with one timer for all of them."""
        while True:
            if not self._timed:
                self._timing = anyio.Event()
                await self._timing.wait()
            if self._timed:
                await anyio.sleep_until(self._timed[0].until)
            now = anyio.current_time()
            while self._timed and (self._timed[0].done.is_set() or self._timed[0].until <= now):
                self._give_up(self._timed.popleft())

    def _give_up(self, call: _Call) -> None:
        if not call.done.is_set():
            self._late += 1
            call.settle(None, DeadlinePassed())

    async def _close(self) -> None:
        self._closed = True
        for _ in self._threads:
            self._calls.put(None)
        if self._pending:
            with anyio.move_on_after(STOP_SECONDS):
                await self._ended.wait()
        while self._timed:
            self._give_up(self._timed.popleft())
        if not self._pending:
            for thread in self._threads:
                thread.join(JOIN_SECONDS)


def _waker() -> Callable[[Callable[[], None]], object]:
    """Return what makes the running loop call a function, from any thread."""
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio  # noqa: PLC0415 - only under its own loop

        return trio.lowlevel.current_trio_token().run_sync_soon


def _step_back(nice: int) -> None:
    """Lower the priority of this thread."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + nice)
