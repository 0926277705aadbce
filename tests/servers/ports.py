"""Ports that nobody listens on, below those that the kernel gives to clients (32768 and up)."""

from __future__ import annotations

import random
import socket
from itertools import chain

LOWEST, HIGHEST = 20_000, 32_000


def free_ports(count: int = 1) -> int:
    """Return the first of `count` ports in a row that are free now; different test processes get different ones."""
    begin = random.SystemRandom().randrange(LOWEST, HIGHEST - count)
    for first in chain(range(begin, HIGHEST - count), range(LOWEST, begin)):
        if all(_free(first + place) for place in range(count)):
            return first
    raise AssertionError(f"no {count} ports in a row are free between {LOWEST} and {HIGHEST}")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
