"""A circuit breaker: a server that is away costs one time-out, not one for every request."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

PATIENCE = 3  # refusals in a row: one may be a pooled connection that a restart cut, and each of them is quick
FIRST_PAUSE_SECONDS = 0.1  # a restarted server is back within a second: look soon ...
LONGEST_PAUSE_SECONDS = 1.0  # ... and never make it wait longer than this for its work


class BreakerOpen(Exception):
    """The server is known to be away and was not asked: nothing happened."""


class Breaker:
    """Stops calls to a server that is away and lets them through again after a good probe.

    Opens at the first error of a type in `stalls`, which cost their caller a time-out or leave nothing to hope
    for, and after PATIENCE errors in a row of a type in `refusals`. Errors of other types mean that the server
    answered. Only a probe closes it, so no request ever pays to find out. Runs on any loop; not for use from threads,
    except `is_open`. `opened` is how often calls were stopped, `reason` the type of the error that was the last reason.
    """

    def __init__(self, *, stalls: tuple[type[Exception], ...], refusals: tuple[type[Exception], ...]) -> None:
        self.opened = 0
        self.reason = ""
        self._stalls = stalls
        self._refusals = refusals
        self._refused = 0
        self._open = anyio.Event()

    @property
    def is_open(self) -> bool:
        """Whether calls are stopped."""
        return self._open.is_set()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Raise BreakerOpen at once while open; else watch what the body raises, and let it through.

        What a body started before an outage raises after it counts for nothing.
        """
        if self.is_open:
            raise BreakerOpen
        outage = self.opened
        try:
            yield
        except BreakerOpen:
            raise
        except Exception as error:
            if outage == self.opened:
                self._failed(error)
            raise
        else:
            self._refused = 0

    async def probing(self, probe: Callable[[], Awaitable[object]], changed: Callable[[], object]) -> NoReturn:
        """Run until cancelled, in a task of the owner: while open, probe with growing pauses until one is good.

        A good probe returns; a bad one raises one of the types that the breaker knows. Any other error is raised.
        `changed` is called after each opening and each closing.
        """
        while True:
            await self._open.wait()
            changed()
            pause = FIRST_PAUSE_SECONDS
            while self.is_open:
                await anyio.sleep(pause)
                try:
                    await probe()
                except (*self._stalls, *self._refusals):
                    pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                else:
                    self._refused = 0
                    self._open = anyio.Event()
            changed()

    def _failed(self, error: Exception) -> None:
        self._refused = self._refused + 1 if isinstance(error, self._refusals) else 0
        if isinstance(error, self._stalls) or self._refused >= PATIENCE:
            self.opened += 1
            self.reason = type(error).__name__
            self._open.set()
