"""Ids that grow with time, so that indexes grow at one end."""

from __future__ import annotations

import secrets
import time
from uuid import UUID

VERSION, VARIANT = 0x7 << 76, 0b10 << 62
RANDOM_A, RANDOM_B = 0xFFF, (1 << 62) - 1


def uuid7(seconds: float | None = None) -> UUID:
    """Return a UUIDv7 (RFC 9562, 5.7) of now, or of a time in Unix seconds."""
    milliseconds = int((time.time() if seconds is None else seconds) * 1000)
    random = secrets.randbits(74)
    return UUID(int=milliseconds << 80 | VERSION | (random >> 62 & RANDOM_A) << 64 | VARIANT | random & RANDOM_B)
