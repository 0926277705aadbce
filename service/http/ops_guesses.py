"""How often a client may be wrong about the operators' token.

Wrong tokens are counted and right ones never are, so who has the token scrapes as often as it likes. While a client's
window is full its right token is refused like any other. If it passed, the limit would limit nothing: whoever
guesses would go on, and know the token by the one answer that is no 429. What that can cost an operator is a minute,
and only behind the address of somebody who guesses.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio

from actors.access import of_client
from actors.domain.errors import RateLimited
from actors.domain.windows import TICK_SECONDS, Admission, Reading, Rule
from actors.kit.mailbox import MachineError
from actors.rate_limiter import Admit

if TYPE_CHECKING:
    from actors.domain.windows import Bucket
    from actors.forms import Visit
    from actors.kit.mailbox import Address

RULE = Rule("ops-token", 10, 60)  # who mistypes needs three; a scraper with yesterday's token asks four times a minute
REMEMBERED = 1024  # guesses in this process, and only while no store answers


class OpsGuesses:
    """Asks the RateLimiter; while neither store answers it decides by what this process has seen.

    The metrics are wanted most in such an outage, and guesses must not become free in it.
    """

    def __init__(self, limiter: Address) -> None:
        self._limiter = limiter
        self._seen: deque[tuple[Bucket, float]] = deque(maxlen=REMEMBERED)

    async def hear(self, visit: Visit, *, wrong: bool) -> None:
        """Count a wrong token; raises RateLimited, also for the right one, while the client's window is full.

        The caller has compared before it asks, and tells nobody until it knows: of guesses that come all at once no
        more than the limit hear that they were wrong.
        """
        buckets = of_client(RULE, visit)
        try:
            admission = await self._limiter.ask(Admit(buckets, count=wrong))
        except MachineError:
            admission = self._decide_alone(buckets, count=wrong)
        if wrong or not admission.admitted:
            visit.readings.extend(admission.readings)
        if not admission.admitted:
            raise RateLimited(admission.retry_after)

    def _decide_alone(self, buckets: tuple[Bucket, ...], *, count: bool) -> Admission:
        now = anyio.current_time()
        used = {
            bucket: [moment for seen, moment in self._seen if seen == bucket and moment + RULE.seconds >= now]
            for bucket in buckets
        }
        admitted = all(len(moments) < bucket.rule.limit for bucket, moments in used.items())
        if admitted and count:
            self._seen.extend((bucket, now) for bucket in buckets)
            used = {bucket: [*moments, now] for bucket, moments in used.items()}
        readings = [_reading(bucket, moments, now) for bucket, moments in used.items()]
        return Admission.read("", admitted=admitted, readings=readings)


def _reading(bucket: Bucket, moments: list[float], now: float) -> Reading:
    reset = moments[0] + bucket.rule.seconds - now + TICK_SECONDS if moments else 0.0
    return Reading(bucket.rule, bucket.rule.limit - len(moments), reset)
