"""What the limits say, as response headers.

`RateLimit-Policy` and `RateLimit` in the structured form (RFC 9651) of draft-ietf-httpapi-ratelimit-headers-11, 23 May
2026: lists of policies by name, `q` the quota and `w` the window, `r` what remains and `t` the seconds within which no
more than that can be used. Ours end when one more is free, which is what `t` meant up to the draft's tenth version.
The `X-RateLimit-` fields are custom: no document defines them.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actors.domain.windows import Reading, Rule


def rate_limit_headers(readings: Iterable[Reading], now: float) -> dict[str, str]:
    """Return the headers for what a request's limits said, in order; none without readings. `now` is in Unix time.

    Limits are ordered by how many more requests they let pass, then by the longer wait: the first one is the closest
    and the one of `X-RateLimit-`, and its reset is the time of a `Retry-After` beside it. Durations are rounded up.
    """
    limits = _one_of_each_name(sorted(_newest(readings), key=lambda limit: (limit.remaining, -limit.reset_seconds)))
    if not limits:
        return {}
    closest = limits[0]
    return {
        "RateLimit-Policy": ", ".join(f'"{it.rule.name}";q={it.rule.limit};w={it.rule.seconds}' for it in limits),
        "RateLimit": ", ".join(f'"{it.rule.name}";r={it.remaining};t={_whole(it.reset_seconds)}' for it in limits),
        "X-RateLimit-Limit": str(closest.rule.limit),
        "X-RateLimit-Remaining": str(closest.remaining),
        "X-RateLimit-Reset": str(_whole(now + closest.reset_seconds)),
    }


def _newest(readings: Iterable[Reading]) -> Iterable[Reading]:
    """Keep the last reading of each limit: one that was looked at and then counted is told as it stands after."""
    newest: dict[Rule, Reading] = {reading.rule: reading for reading in readings}
    return newest.values()


def _one_of_each_name(limits: Iterable[Reading]) -> list[Reading]:
    """Keep the closest limit of each name, as the two windows of an IPv6 client share one: names are unique."""
    by_name: dict[str, Reading] = {}
    for limit in limits:
        by_name.setdefault(limit.rule.name, limit)
    return list(by_name.values())


def _whole(seconds: float) -> int:
    """Round up, but for the microsecond by which a window is longer than its name says."""
    return ceil(seconds - 1e-3)
