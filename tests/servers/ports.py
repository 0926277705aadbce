"""Ports that nobody listens on, below those that the kernel gives to clients (32768 and up)."""

from __future__ import annotations

import random
import socket

LOWEST, HIGHEST = 20_000, 32_000
TRIES = 200


def free_ports(count: int) -> int:
    """Return the first of `count` ports in a row that are free now; different test processes get different ones."""
    chance = random.SystemRandom()
    for _ in range(TRIES):
        first = chance.randrange(LOWEST, HIGHEST - count)
        if all(_free(first + place) for place in range(count)):
            return first
    raise AssertionError(f"no {count} ports in a row are free")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
