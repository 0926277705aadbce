"""Moments as operators write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
AGO = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
FORMS = "must be 90s, 30m, 2h, 1d or a time like 2026-01-31T12:00:00Z"


def moment(text: str) -> datetime:
    """Read `90s`, `30m`, `2h` or `1d` ago, or an RFC 3339 time (UTC where it names no zone); raises ValueError."""
    try:
        if ago := AGO.fullmatch(text):
            return datetime.now(UTC) - timedelta(**{UNITS[ago[2]]: int(ago[1])})
        parsed = datetime.fromisoformat(text)
    except (ValueError, OverflowError):  # the latter before the year 1
        raise ValueError(FORMS) from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
