from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import anyio

from service.children import BEAT, READY
from service.pulse import VARIABLE, beating, inherited, lend

if TYPE_CHECKING:
    from trio.testing import MockClock


async def test_work_is_ready_at_once_and_beats_every_second(autojump_clock: MockClock) -> None:
    """The master hears that the work has begun, then a beat a second until it is done."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        await beating(theirs, lambda: anyio.sleep(2.5))
        assert ours.recv(64) == READY + BEAT * 3


async def test_a_master_that_is_gone_or_does_not_listen_stops_no_work(autojump_clock: MockClock) -> None:
    """Beats into a closed channel are lost, the work goes on to its end."""
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        await beating(theirs, lambda: anyio.sleep(2.5))
    await beating(None, lambda: anyio.sleep(2.5))


def test_a_channel_is_taken_over_once() -> None:
    """What was lent is found by the program that inherits it, and by nothing that this one starts in its turn."""
    ours, theirs = socket.socketpair()
    environment = {"HOME": "/"}
    lend(theirs, environment)
    descriptor = theirs.detach()
    channel = inherited(environment)
    assert channel is not None
    with ours, channel:
        assert channel.fileno() == descriptor
        assert not channel.get_inheritable()
        assert VARIABLE not in environment
    assert inherited(environment) is None
