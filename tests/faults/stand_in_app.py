"""The application of the stand-in service: what its generation and its API workers run.

GET / answers with the worker's pid and the version, /large a megabyte of them, /slow once the file `go` is there,
/readyz with 503 while draining; /stuck blocks the loop and /crash fails what runs beside the app. No worker gets ready
while the version is `slow`, and none starts while it is `broken`.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from service.processes.generation import Generation
from service.processes.spawn import set_title
from service.settings import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Message = dict[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

FOLDER = Path(os.environ["STAND_IN_FOLDER"])  # where tests leave their wishes
LOOK_SECONDS = 0.02  # between looks at a file of another process


class App:
    """The smallest ASGI app that shows what the tests need to see."""

    def __init__(self) -> None:
        self.draining = False
        self.crashed = anyio.Event()
        self.version = version()

    def drain(self) -> None:
        """Answer 503 to /readyz from now on."""
        self.draining = True

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        status = 200
        match scope["path"]:
            case "/slow":
                say(f"slow {os.getpid()}")
                await _until(FOLDER.joinpath("go").exists)
            case "/readyz":
                status = 503 if self.draining else 200
            case "/stuck":
                time.sleep(60)  # noqa: ASYNC251 - the loop is meant to be stuck
            case "/crash":
                self.crashed.set()
        body = f"{os.getpid()} {self.version}".encode()
        if scope["path"] == "/large":
            body *= 100_000
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - a file of another process tells no event
        await anyio.sleep(LOOK_SECONDS)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _crash(app: App) -> None:
    await app.crashed.wait()
    raise RuntimeError("what runs beside the app has failed")


@asynccontextmanager
async def build(_name: str, _lost_lines: Callable[[], int]) -> AsyncIterator[tuple[App, Callable[[], None]]]:
    """Run one worker's app around the body; it fails if the version says so."""
    await _until(lambda: version() != "slow")
    app = App()
    if app.version == "broken":
        raise RuntimeError(app.version)
    async with anyio.create_task_group() as aside:
        aside.start_soon(_crash, app)
        yield app, app.drain
        aside.cancel_scope.cancel()
    say(f"drained {os.getpid()}")


def generation(number: int, listener: int, pipe: int) -> None:
    """Run API workers as the console command does, with another app."""
    set_title(f"generation {number}")
    os._exit(Generation(load(os.environ), listener, pipe, build).run())


def version() -> str:
    """Return what the test wishes the code to be."""
    return FOLDER.joinpath("version").read_text(encoding="utf-8").strip()


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
