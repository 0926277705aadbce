"""A service without servers, under the real master and the real worker: `python stand_in.py vestibule serve`.

GET / answers with the worker's pid and the version, /late after a moment, /slow once the file `go` is there, /readyz
with 503 while draining; /stuck blocks the loop and /crash fails what runs beside the app. No worker gets ready
while the version is `slow`.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from service import logs
from service.children import Child, Post, command, fork
from service.handover import take
from service.settings import read
from service.starting import starting
from service.supervise import MAIL, api_posts, listener_for, supervise

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Message = dict[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]


FOLDER = Path(os.environ["STAND_IN_FOLDER"])  # where tests leave their wishes
LOOK_SECONDS = 0.02
LATE_SECONDS = 0.2


class App:
    """The smallest ASGI app that shows what the tests need to see."""

    def __init__(self) -> None:
        self.draining = False
        self.crashed = anyio.Event()
        self.version = _version()

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
                _say(f"slow {os.getpid()}")
                await _until(FOLDER.joinpath("go").exists)
            case "/late":
                await anyio.sleep(LATE_SECONDS)  # an answer that comes late is what is asked for
            case "/readyz":
                status = 503 if self.draining else 200
            case "/stuck":
                time.sleep(60)  # noqa: ASYNC251 - the loop is meant to be stuck
            case "/crash":
                self.crashed.set()
        body = f"{os.getpid()} {self.version}".encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _version() -> str:
    return FOLDER.joinpath("version").read_text(encoding="utf-8").strip()


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
    await _until(lambda: _version() != "slow")
    app = App()
    if app.version == "broken":
        raise RuntimeError(app.version)
    async with anyio.create_task_group() as aside:
        aside.start_soon(_crash, app)
        yield app, app.drain
        aside.cancel_scope.cancel()
    _say(f"drained {os.getpid()}")


COMMANDS = {  # that do nothing for long; the stubborn one does not end when it is asked to
    "sleeper": ["sleep", "1000"],
    "stubborn": ["sh", "-c", "trap '' TERM; while :; do sleep 1000; done"],
}


def post(name: str) -> Post:
    """Return a post for a command that may take a second to end."""

    def start() -> Child:
        now = time.monotonic()
        return Child(name, fork(command(COMMANDS[name])), now, now)

    return Post(name, MAIL, start, grace=1.0)


def main() -> int:
    """Play `serve`."""
    taken = take(os.environ)
    with starting(taken) as terminal:
        settings = read(os.environ)
        logs.configure(settings, "master", threaded=False)
        listener = listener_for(settings, taken)
    posts = api_posts(settings, listener, build)
    posts += [post(name) for name in COMMANDS if name in sys.argv]
    return supervise(
        settings,
        posts,
        listener,
        trial=[sys.executable, os.fspath(Path(__file__).with_name("stand_in_trial.py"))],
        announce=lambda address: _say(f"ready {address}"),
        terminal=terminal,
        taken=taken,
    )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
