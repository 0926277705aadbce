"""The turnstile before the framework: a registration for whose hash there is no room goes no further.

Of a crowd that comes at once most are turned away here, for half of what the framework's way to the same answer costs.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from actors.access import Place
from actors.kit.mailbox import NotAccepted
from service.http.edge import exchange_of
from service.http.edge_headers import values_of
from service.http.errors import BodyTimeout
from service.http.json_gate import BODY_SECONDS, MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from service.http.edge import Application, Event, Receive, Scope, Send

MOST_LOOKING = 8  # at once, in a full house: repeats find their answer, a crowd with keys does not fill the database
METHOD, PATH = REGISTER = ("POST", "/api/v1/users/register")
DIGITS = len(str(MOST_BYTES))


class Turnstile:
    """Wraps an ASGI application; `place` raises NotAccepted when there is no room for one more hash.

    A place is taken when the whole body is there: before, it could be held by whoever never sends one. An announced
    body that is too large passes, and is refused unread. Who sends an Idempotency-Key may be answered without a hash:
    a few of them at a time pass without a place.
    """

    def __init__(self, application: Application, place: Callable[[], Place]) -> None:
        self._application = application
        self._place = place
        self._looking: set[Place] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a scope; raises NotAccepted, or BodyTimeout, instead of an answer."""
        if not _holds(scope):
            await self._application(scope, receive, send)
            return
        exchange_of(scope).route = f"{METHOD} {PATH}"
        taken = await _body(receive)
        if taken[-1].get("more_body", False):  # it is too large, which the application says
            await self._application(scope, _again(taken, receive), send)
            return
        with self._let_in(scope) as place:
            await self._application(scope, _again(taken, receive, place.left), send)

    def _let_in(self, scope: Scope) -> Place:
        try:
            exchange_of(scope).place = place = self._place()
        except NotAccepted:
            if len(self._looking) >= MOST_LOOKING or not values_of(scope, b"idempotency-key"):
                raise
            return Place(self._looking)
        return place


def _holds(scope: Scope) -> bool:
    if scope["type"] != "http" or (scope["method"], scope["path"]) != REGISTER:
        return False
    return all(map(_usual, values_of(scope, b"content-length")))


def _usual(length: bytes) -> bool:
    return length.isdigit() and len(length) <= DIGITS and int(length) <= MOST_BYTES


async def _body(receive: Receive) -> deque[Event]:
    """Return the body's events; of one that is too large so many that this can be seen."""
    events: deque[Event] = deque()
    size = 0
    try:
        with anyio.fail_after(BODY_SECONDS):
            while size <= MOST_BYTES:
                events.append(await receive())
                size += len(events[-1].get("body", b""))
                if not events[-1].get("more_body", False):
                    break
    except TimeoutError:
        raise BodyTimeout from None
    return events


def _again(taken: deque[Event], receive: Receive, end: Callable[[], Awaitable[None]] = checkpoint) -> Receive:
    """Return what gives the events once more, and those that come next.

    After a whole body only the client's end can come; it is told after `end`, for it would stop what was sent in full.
    """

    async def again() -> Event:
        if taken:
            return taken.popleft()
        await end()
        return await receive()

    return again
