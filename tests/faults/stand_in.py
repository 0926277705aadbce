"""A service without servers, under the real master and the real worker: `python stand_in.py vestibule serve`.

GET / answers with the worker's pid, /slow after SLOW seconds, /stream once a second until it is cut, /readyz with 503 while draining,
/stuck blocks the loop. `check` as the first argument plays the trial of a reload.
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
from service.children import Post, command, fork, Child
from service.handover import take
from service.settings import BadSettings, read
from service.supervise import MAIL, api_posts, listener_for, supervise

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class App:
    """The smallest ASGI app that shows what the tests need to see."""

    def __init__(self) -> None:
        self.draining = False
        self.version = Path(os.environ["STAND_IN_VERSION"]).read_text(encoding="utf-8").strip()

    def drain(self) -> None:
        """Answer 503 to /readyz from now on."""
        self.draining = True

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        status = 200
        match scope["path"]:
            case "/slow":
                await anyio.sleep(2)
            case "/readyz":
                status = 503 if self.draining else 200
            case "/stuck":
                time.sleep(60)  # the loop is meant to be stuck
        body = f"{os.getpid()} {self.version}".encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def build(_name: str) -> Callable[[], Any]:
    """Return the context of one worker; it fails if the version says so."""

    @asynccontextmanager
    async def context() -> AsyncIterator[tuple[App, Callable[[], None]]]:
        app = App()
        if app.version == "broken":
            raise RuntimeError(app.version)
        yield app, app.drain
        sys.stdout.write(f"drained {os.getpid()}\n")
        sys.stdout.flush()

    return context


def sleeper() -> Post:
    """Return a post for a command that does nothing for long."""

    def start() -> Child:
        now = time.monotonic()
        return Child("sleeper", fork(command(["sleep", "1000"])), now, now)

    return Post("sleeper", MAIL, start, grace=5.0)


def main() -> int:
    """Play `serve`, or the trial."""
    try:
        settings = read(os.environ)
    except BadSettings as error:
        sys.stderr.write(f"vestibule: {error}\n")
        return 2
    if "check" in sys.argv:
        return 0
    taken = take(os.environ)
    logs.configure(settings, "master", threaded=False)
    listener = listener_for(settings, taken)
    posts = api_posts(settings, listener, build)
    if "sleeper" in sys.argv:
        posts.append(sleeper())
    return supervise(
        settings,
        posts,
        listener,
        trial=[sys.executable, __file__, "check"],
        announce=lambda address: print(f"ready {address}", flush=True),
        taken=taken,
    )


if __name__ == "__main__":
    sys.exit(main())
