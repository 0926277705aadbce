"""Ports that nobody listens on: beside the bench's, and below those that the kernel gives to clients (32768 and up)."""

from __future__ import annotations

from ops.bench import machine


def free_ports(count: int) -> int:
    """Return the first of `count` ports in a row that are free now; different test processes get different ones."""
    first: int = machine.free_ports(count, 20_000, 32_000)
    return first
