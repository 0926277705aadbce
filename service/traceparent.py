"""The W3C `traceparent`: what is taken from a caller, and the trace id that log lines carry."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HEADER = b"traceparent"
# Trace Context, 3.2: version 00, and neither id all zeros.
TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def valid(text: str) -> str | None:
    """Return the text if it is a trace context, else None."""
    return text if TRACEPARENT.fullmatch(text) else None


def trace_id(text: str | None) -> str | None:
    """Return the 32 digits that name the trace, None without one."""
    found = TRACEPARENT.fullmatch(text or "")
    return found[1] if found else None


def of_headers(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the trace context of a request; two of them are none (Trace Context, 4.3)."""
    given = [value for name, value in headers if name.lower() == HEADER]
    return valid(given[0].decode("latin-1")) if len(given) == 1 else None
