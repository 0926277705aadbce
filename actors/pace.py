"""How long real mails take, so that a silent one can take as long."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio

from actors.domain.mail import Deferred, Rejected, Unreached

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from actors.domain.mail import ClaimedMail

REMEMBERED = 32  # sends: a few minutes of a quiet service
TYPICAL_SECONDS = 0.05  # before the first real send of this process
RECENT_SECONDS = 60.0  # for so long a server that put a mail off puts silent ones off too: twice the longest back-off


class Pace:
    """Remembers the last real sends; `chance` in [0, 1) chooses which of them a silent mail repeats."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._took: deque[float] = deque(maxlen=REMEMBERED)
        self._put_off: tuple[float, Deferred] | None = None

    async def keep(self, sending: Awaitable[None]) -> None:
        """Send, and remember how long it took or that the server put it off."""
        begun = anyio.current_time()
        try:
            await sending
        except Deferred as delay:
            self._put_off = (anyio.current_time(), delay)
            raise
        self._put_off = None
        self._took.append(anyio.current_time() - begun)

    def reached(self) -> None:
        """Take note that a connection could be had: no silent mail is put off any longer for the want of one."""
        if self._put_off is not None and isinstance(self._put_off[1], Unreached):
            self._put_off = None

    async def pretend(self, mail: ClaimedMail) -> None:
        """Take the time of a real send and end as one would now: raises Rejected or Deferred, or returns."""
        took = self._took[int(self._chance() * len(self._took))] if self._took else TYPICAL_SECONDS
        await anyio.sleep(took)
        if mail.doomed:
            raise Rejected("refused as the last mail to this address was")
        if self._put_off is not None:
            at, delay = self._put_off
            if anyio.current_time() - at < RECENT_SECONDS:
                raise type(delay)(delay.reason, delay.retry_after)
