"""One API worker: the wiring, the app and Hypercorn on the shared socket, in one task group, from fork to exit."""

from __future__ import annotations

import os
import random
import signal
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.lowlevel
import hypercorn.asyncio
import hypercorn.trio
from loguru import logger

from service import logs
from service.children import DRAIN, READY, RETIRE, STOP, SUCCESSOR
from service.ending import ENDING
from service.hypercorn_worker import KEEP_ALIVE_SECONDS, WorkerConfig, harden
from service.pulse import beat, tell

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

    from service.settings import Settings

ACCEPT_SECONDS = 0.1  # connections that the kernel has taken for us are still served after the order to stop
SETTLE_TURNS = 20  # of the loop: a connection accepted in the last one is counted some turns later
LINGER_SECONDS = 0.2  # a request that is on its way over an idle connection still gets its answer
LEAVE_SECONDS = KEEP_ALIVE_SECONDS + 0.5  # a replaced worker's idle connections end by themselves meanwhile


class Counted:
    """An ASGI app that tells once when it has had so many requests; `limit` 0 never tells.

    Each request can look in its scope whether the worker is about to leave: `ending` is set then.
    """

    def __init__(
        self,
        app: Any,  # noqa: ANN401 - any ASGI framework
        limit: int,
        tell: Callable[[], None],
        ending: anyio.Event,
    ) -> None:
        self._app = app
        self._limit = limit
        self._tell = tell
        self._ending = ending
        self.served = 0

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve one request or one lifespan."""
        if scope["type"] == "http":
            self.served += 1
            if self.served == self._limit:
                self._tell()
            cast("dict[str, Any]", scope)[ENDING] = self._ending
        await self._app(scope, receive, send)


class Worker:
    """Runs an app until the master says stop, or is gone; answers that were begun are finished within the grace.

    `build` gives the app inside a context that lives as long as the serving: in it the actors run. `draining` is
    called when the master begins to stop, while the socket still accepts.
    """

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        channel: socket.socket,
        build: Callable[[], AbstractAsyncContextManager[tuple[Any, Callable[[], None]]]],
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._channel = channel
        self._build = build
        self._config = WorkerConfig(os.dup(listener.fileno()), settings.grace_seconds)
        self._leave = anyio.Event()
        self._ending = anyio.Event()  # for answers without an end of their own
        self._patience = anyio.CancelScope()  # with connections that are still open, once we have been told to leave
        self._draining: Callable[[], None] = lambda: None

    async def run(self) -> None:
        """Serve; returns when everything that was accepted has been answered and all actors have drained."""
        self._channel.settimeout(0)
        async with anyio.create_task_group() as group:
            group.start_soon(beat, self._channel)
            group.start_soon(self._obey)
            group.start_soon(self._obey_signals)
            async with self._build() as (app, draining):
                self._draining = draining
                limit = self._settings.max_requests
                limit += random.randint(0, limit // 10)  # noqa: S311 - workers must not all be replaced at once
                counted = Counted(app, limit, lambda: tell(self._channel, SUCCESSOR), self._ending)
                async with anyio.create_task_group() as serving:
                    serving.start_soon(self._serve, counted)
            group.cancel_scope.cancel()

    async def _serve(self, app: Counted) -> None:
        """Run Hypercorn, in a task of its own: its task group leaves a mark of cancellation on the one it ran in."""
        serve = hypercorn.trio.serve if self._settings.loop == "trio" else hypercorn.asyncio.serve
        await serve(cast("Any", app), self._config, shutdown_trigger=self._until_told)

    async def _obey(self) -> None:
        """Follow the master's orders; the end of the channel is the end of the master, and ours."""
        while True:
            await anyio.wait_readable(self._channel)
            try:
                orders = self._channel.recv(64)
            except BlockingIOError:
                continue
            except OSError:
                orders = b""
            for order in (orders[place : place + 1] for place in range(len(orders))):
                if order == DRAIN:
                    self._draining()
                    self._ending.set()
                elif order == RETIRE:
                    self._go(LEAVE_SECONDS)
                elif order == STOP:
                    self._go(LINGER_SECONDS)
            if not orders:
                self._go(LINGER_SECONDS)
                return

    def _go(self, patience: float) -> None:
        """Begin to leave, or leave sooner than was said before."""
        self._patience.deadline = min(self._patience.deadline, anyio.current_time() + ACCEPT_SECONDS + patience)
        self._ending.set()
        self._leave.set()

    async def _obey_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for number in received:
                if number == signal.SIGTERM:  # of an operator, for this worker alone; SIGINT is the master's business
                    self._go(LEAVE_SECONDS)

    async def _until_told(self) -> None:
        """Hypercorn calls it once it accepts, and stops when it returns: here is the whole way out."""
        tell(self._channel, READY)
        await self._leave.wait()
        self._config.closing = True
        await anyio.sleep(ACCEPT_SECONDS)
        self._accept_no_more()
        for _ in range(SETTLE_TURNS):
            await anyio.lowlevel.checkpoint()
        with self._patience:
            await self._config.until_empty()

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


def serve_worker(
    settings: Settings,
    name: str,
    listener: socket.socket,
    channel: socket.socket,
    build: Callable[[str, Callable[[], int]], AbstractAsyncContextManager[tuple[Any, Callable[[], None]]]],
) -> int:
    """Serve until told to stop; returns the process' exit code: 0, or 1 after a failure that needs a new process.

    `build` is the Worker's, after it is given the name and how to ask for the number of log lines that were lost.
    """
    writer = logs.configure(settings, name)
    harden()
    backend = "trio" if settings.loop == "trio" else "asyncio"
    options = {} if backend == "trio" else {"use_uvloop": settings.loop == "uvloop"}
    try:
        within = partial(build, name, lambda: writer.dropped)
        anyio.run(_run, settings, listener, channel, within, backend=backend, backend_options=options)
    except Exception:  # noqa: BLE001 - told here, and the master starts another
        logger.opt(exception=True).critical("worker failed")
        return 1
    else:
        return 0
    finally:
        writer.stop()


async def _run(
    settings: Settings,
    listener: socket.socket,
    channel: socket.socket,
    build: Callable[[], AbstractAsyncContextManager[tuple[Any, Callable[[], None]]]],
) -> None:
    await Worker(settings, listener, channel, build).run()
