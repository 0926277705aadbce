"""The dashboard's live feed: server-sent events (WHATWG HTML, 9.2), a snapshot every two seconds.

A stream ends when its client leaves, when the worker is about to leave, and after a quarter of an hour, so that a
session that is over ends too and nobody sends for hours to a machine that sleeps; the page comes back by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, cast
from weakref import WeakSet

import anyio
from quart import current_app, request
from quart.wrappers.response import ResponseBody

from actors.kit.mailbox import MachineError, NotAccepted
from service.ending import ENDING
from service.http.edge import exchange_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quart import Response

MOST_STREAMS = 8  # in a worker: each costs a reading of the metrics every two seconds, shared if they coincide
EVERY_SECONDS = 2.0
LIFE_SECONDS = 900.0
BUSY_SECONDS = 5.0
HELLO = "retry: 1000\n\n"
BEAT = ": beat\n\n"  # before the reading, which may take its time: proxies and clients see that we are there
TROUBLE = "event: trouble\ndata: The database cannot be reached. Trying again.\n\n"
BYE = "event: bye\ndata: This worker ends. Connecting to another one.\n\n"
HEADERS = {
    "Connection": "close",  # its end frees the connection too: the next one must be able to reach another worker
    "X-Accel-Buffering": "no",  # nginx would collect events until its buffer is full
}


class OpsStream:
    """Opens streams, at most MOST_STREAMS at a time; `read` gives a snapshot as JSON on one line."""

    def __init__(self, read: Callable[[], Awaitable[str]]) -> None:
        self._read = read
        self._open: WeakSet[Events] = WeakSet()  # a stream that never began to be sent frees its place too

    def answer(self) -> Response:
        """Answer the current request with a stream; raises NotAccepted when there is no place or no time left.

        A HEAD request gets the headers and no stream.
        """
        ending = cast("dict[str, Any]", request.scope).get(ENDING) or anyio.Event()
        if ending.is_set():
            raise NotAccepted
        if len(self._open) >= MOST_STREAMS:
            raise NotAccepted(BUSY_SECONDS)
        exchange_of(request.scope).streaming = True
        body: Events | str = ""
        if request.method != "HEAD":
            body = Events(self._read, ending, self._open)
            self._open.add(body)
        answer: Response = current_app.response_class(body, 200, HEADERS, content_type="text/event-stream")
        return answer


class Events(ResponseBody):
    """The body of one stream; leaves `places` when it ends, however that comes about."""

    def __init__(self, read: Callable[[], Awaitable[str]], ending: anyio.Event, places: WeakSet[Events]) -> None:
        self._read = read
        self._ending = ending
        self._places = places
        self._last = anyio.current_time() + LIFE_SECONDS
        self._next = self._hello

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._places.discard(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        return await self._next()

    async def _hello(self) -> str:
        self._next = self._snapshot
        return HELLO + BEAT

    async def _beat(self) -> str:
        """Wait until it is time for the next snapshot, or for the end."""
        with anyio.move_on_after(min(EVERY_SECONDS, self._last - anyio.current_time())):
            await self._ending.wait()
        if self._ending.is_set() or anyio.current_time() >= self._last:
            self._next = self._end
            return BYE
        self._next = self._snapshot
        return BEAT

    async def _snapshot(self) -> str:
        self._next = self._beat
        try:
            return f"data: {await self._read()}\n\n"
        except MachineError:
            return TROUBLE

    async def _end(self) -> str:
        raise StopAsyncIteration
