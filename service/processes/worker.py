"""One API worker: the application and Hypercorn on the shared socket, in one task group, from fork to exit."""

from __future__ import annotations

import os
import random
import signal
import socket
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.lowlevel
import hypercorn.asyncio
import hypercorn.trio
from loguru import logger

from service import logging
from service.processes.children import BEAT, BEAT_SECONDS, LEAVE, READY, RECYCLE, STOP, report
from service.processes.hypercorn_fixes import WorkerConfig, harden

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

    from service.settings import Settings

    # Opens the application by the worker's name and how to ask for lost log lines; gives it and what begins the drain.
    Open = Callable[[str, Callable[[], int]], AbstractAsyncContextManager[tuple[Any, Callable[[], None]]]]

ACCEPT_SECONDS = 0.1  # connections that the kernel has taken for us are still served after the order to stop
SETTLE_TURNS = 20  # of the loop: a connection accepted in the last one is counted some turns later
STOP_SECONDS = 0.2  # a request that is on its way over an idle connection still gets its answer


class Worker:
    """Runs an application until a signal; answers that were begun are finished within the grace.

    SIGTERM: another worker takes its place, so it waits for its idle connections as long as they may be kept. SIGUSR2:
    the final stop, after the drain. SIGINT is the supervisor's business.
    """

    def __init__(self, settings: Settings, listener: socket.socket, pipe: int) -> None:
        self._settings = settings
        self._listener = listener
        self._pipe = pipe
        self._config = WorkerConfig(
            os.dup(listener.fileno()), grace=settings.grace_seconds, keep_alive=settings.keep_alive_seconds
        )
        self._leave = anyio.Event()
        self._patience = anyio.CancelScope()  # with connections that are still open, once it was told to leave
        self._drain: Callable[[], None] = lambda: None  # until the application is open
        limit = settings.max_requests  # 0 is never reached
        self._requests_left = limit + random.randint(0, limit // 10)  # noqa: S311 - workers must not all be replaced at once

    async def run(self, opening: AbstractAsyncContextManager[tuple[Any, Callable[[], None]]]) -> None:
        """Serve; return when everything that was accepted has been answered and all actors have drained."""
        async with anyio.create_task_group() as group:
            group.start_soon(beat, self._pipe)
            group.start_soon(self._obey)
            group.start_soon(self._config.cut_slow_connections)
            async with opening as (self._app, self._drain), anyio.create_task_group() as serving:
                serving.start_soon(self._serve)
            group.cancel_scope.cancel()

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve one request or one lifespan; ask to be replaced when MAX_REQUESTS have come."""
        if scope["type"] == "http":
            self._requests_left -= 1
            if self._requests_left == 0:
                report(self._pipe, RECYCLE)
        await self._app(scope, receive, send)

    async def _serve(self) -> None:
        """Run Hypercorn, in a task of its own: its task group leaves a mark of cancellation on the one it ran in."""
        serve = hypercorn.trio.serve if self._settings.loop == "trio" else hypercorn.asyncio.serve
        await serve(cast("Any", self), self._config, shutdown_trigger=self._until_told)

    async def _obey(self) -> None:
        with anyio.open_signal_receiver(LEAVE, STOP, signal.SIGINT) as received:
            async for number in received:
                if number == LEAVE:
                    self._go(min(self._settings.keep_alive_seconds + 0.5, self._settings.grace_seconds))
                elif number == STOP:
                    self._drain()
                    await anyio.sleep(self._settings.drain_seconds)
                    self._go(STOP_SECONDS)

    def _go(self, patience: float) -> None:
        """Begin to leave, or leave sooner than was said before."""
        self._patience.deadline = min(self._patience.deadline, anyio.current_time() + ACCEPT_SECONDS + patience)
        self._leave.set()

    async def _until_told(self) -> None:
        """Hypercorn calls it once it accepts, and stops when it returns: here is the whole way out."""
        report(self._pipe, READY)
        await self._leave.wait()
        self._config.closing = True
        await anyio.sleep(ACCEPT_SECONDS)
        self._accept_no_more()
        for _ in range(SETTLE_TURNS):
            await anyio.lowlevel.checkpoint()
        with self._patience:
            await self._config.until_empty()
        await self._config.close_idle()

    def _accept_no_more(self) -> None:
        """Put a socket to which nobody connects in the place of the shared one.

        The loops offer no way to stop accepting while connections go on. The shared socket stays open in the other
        workers, and what waits in its queue is theirs.
        """
        quiet = socket.socket(socket.AF_UNIX)
        quiet.bind("")
        quiet.listen(1)
        quiet.settimeout(0)
        os.dup2(quiet.fileno(), int(self._config.bind[0].removeprefix("fd://")), inheritable=False)
        self._listener.close()


async def beat(pipe: int) -> None:
    """Show every second that this loop goes on, until cancelled."""
    while True:
        report(pipe, BEAT)
        await anyio.sleep(BEAT_SECONDS)


async def beating(pipe: int, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work of a mail worker, ready and alive in the supervisor's eyes meanwhile."""
    async with anyio.create_task_group() as group:
        report(pipe, READY)
        group.start_soon(beat, pipe)
        await work()
        group.cancel_scope.cancel()


def serve(settings: Settings, name: str, listener: socket.socket, pipe: int, opened: Open) -> int:
    """Serve until told to stop; return the exit code: 0, or 1 after a failure that needs a new process."""
    writer = logging.configure(settings, name)
    harden()
    backend = "trio" if settings.loop == "trio" else "asyncio"
    options = {} if backend == "trio" else {"use_uvloop": settings.loop == "uvloop"}

    async def run() -> None:
        await Worker(settings, listener, pipe).run(opened(name, lambda: writer.dropped))

    try:
        anyio.run(run, backend=backend, backend_options=options)
    except Exception:  # noqa: BLE001 - logged here, and the generation starts another
        logger.opt(exception=True).critical("worker failed")
        return 1
    else:
        return 0
    finally:
        writer.stop()
