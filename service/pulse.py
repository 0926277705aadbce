"""How a supervised process shows its master that its loop goes on: a byte a second over an inherited socket."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from service.children import BEAT, READY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

VARIABLE = "_VESTIBULE_CHANNEL"  # not VESTIBULE_…: it is no setting
BEAT_SECONDS = 1.0


def lend(channel: socket.socket, environment: MutableMapping[str, str]) -> None:
    """Leave the channel to the program that this process, or a child of it, is about to become."""
    channel.set_inheritable(True)
    environment[VARIABLE] = str(channel.fileno())


def inherited(environment: MutableMapping[str, str]) -> socket.socket | None:
    """Return the channel that a master has left, and take it out of the environment; None without a master."""
    descriptor = environment.pop(VARIABLE, None)
    if descriptor is None:
        return None
    channel = socket.socket(fileno=int(descriptor))
    channel.set_inheritable(False)
    return channel


def tell(channel: socket.socket, word: bytes) -> None:
    """Say one word; without room or a master it is lost: it is busy, or gone and the kernel ends us."""
    with suppress(OSError):
        channel.send(word)


async def beat(channel: socket.socket) -> None:
    """Show every second that this loop goes on, until cancelled."""
    while True:
        tell(channel, BEAT)
        await anyio.sleep(BEAT_SECONDS)


async def beating(channel: socket.socket | None, work: Callable[[], Awaitable[None]]) -> None:
    """Do the work, ready and alive in the master's eyes meanwhile; without a channel there is no master."""
    if channel is None:
        await work()
        return
    channel.settimeout(0)
    async with anyio.create_task_group() as group:
        tell(channel, READY)
        group.start_soon(beat, channel)
        await work()
        group.cancel_scope.cancel()
