"""The turnstile before the framework: a registration for whose hash there is no room goes no further.

Of a crowd that comes at once most are turned away here, for half of what the framework's way to the same answer costs.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio

from service.http.edge import exchange_of
from service.http.errors import BodyTimeout
from service.http.json_gate import BODY_SECONDS, MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.access import Place
    from service.http.edge import Application, Event, Receive, Scope, Send

METHOD, PATH = REGISTER = ("POST", "/api/v1/users/register")
PLACE = "vestibule.place"  # where the scope carries it
DIGITS = len(str(MOST_BYTES))


class Turnstile:
    """Wraps an ASGI application; `place` raises NotAccepted when there is no room for one more hash.

    A place is taken when the whole body is there: before, it could be held by whoever never sends one. Who sends an
    Idempotency-Key may be answered without a hash, and an announced body that is too large unread: both just pass.
    """

    def __init__(self, application: Application, place: Callable[[], Place]) -> None:
        self._application = application
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a scope; raises NotAccepted, or BodyTimeout, instead of an answer."""
        if not _holds(scope):
            await self._application(scope, receive, send)
            return
        exchange_of(scope).route = f"{METHOD} {PATH}"
        taken = await _body(receive)

        async def again() -> Event:
            return taken.popleft() if taken else await receive()

        with self._place() as scope[PLACE]:
            await self._application(scope, again, send)


def _holds(scope: Scope) -> bool:
    if scope["type"] != "http" or (scope["method"], scope["path"]) != REGISTER:
        return False
    return not any(
        name == b"idempotency-key" or (name == b"content-length" and not _usual(value))
        for name, value in scope["headers"]
    )


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
