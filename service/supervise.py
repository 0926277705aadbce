"""Puts a master together: the shared socket, a post for every API worker, what the last program handed over."""

from __future__ import annotations

import gc
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from loguru import logger

from service.asgi import LEAVE_SECONDS, serve_worker
from service.children import Child, Post, command, fork
from service.listener import CannotStart, address_of, forget, open_listener
from service.master import Master
from service.pulse import lend
from service.renewal import Renewal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from service.handover import Handover
    from service.settings import Settings
    from service.terminal import Terminal

    Build = Callable[[str, Callable[[], int]], AbstractAsyncContextManager[tuple[Any, Callable[[], None]]]]

API, MAIL, SERVERS = range(3)  # the order of the stop; servers go on from there, in the reverse order of their start
SPARE_SECONDS = 5.0  # beyond the grace: actors drain, metrics are flushed


def listener_for(settings: Settings, taken: Handover | None) -> socket.socket:
    """Return the socket to serve on: the one handed over if its address is still the wanted one, else a new one.

    Raises CannotStart on a first start; after a reload an address that cannot be had leaves the old one in use.
    """
    if taken is None:
        return open_listener(settings.bind)
    if taken.bind == settings.bind:
        return taken.listener
    try:
        listener = open_listener(settings.bind)
    except CannotStart as refusal:
        logger.error("the old address stays in use", reason=str(refusal))
        return taken.listener
    forget(taken.listener)
    taken.listener, taken.bind = listener, settings.bind
    return listener


def api_posts(settings: Settings, listener: socket.socket, build: Build) -> list[Post]:
    """Return a post for each API worker; `build` is called in the new process, as `serve_worker` says."""
    grace = settings.grace_seconds + LEAVE_SECONDS + SPARE_SECONDS

    def post(number: int) -> Post:
        return Post(f"api-{number}", API, lambda: _fork_worker(f"api-{number}", settings, listener, build), grace)

    return [post(number) for number in range(1, settings.workers + 1)]


def supervise(  # noqa: PLR0913 - what differs between the commands, by name
    settings: Settings,
    posts: Sequence[Post],
    listener: socket.socket,
    *,
    trial: Sequence[str],
    announce: Callable[[str], None],
    terminal: Terminal,
    claim: int | None = None,
    taken: Handover | None = None,
) -> int:
    """Run the master until it is told to stop; returns its exit code.

    `trial` is the command line that must succeed before SIGHUP is followed; `announce` gets the address, once all
    are ready, on a first start only.
    """
    by_name = {post.name: post for post in posts}
    strangers = []
    for child in taken.children if taken is not None else ():
        post = by_name.get(child.name)
        if post is None or post.child is not None or child.deadline is not None:
            strangers.append(child)
        else:
            post.child = child
    master = Master(
        posts,
        listener,
        Renewal(trial, settings.bind if taken is None else taken.bind, claim, terminal),
        drain=settings.drain_seconds,
        announce=(lambda: announce(address_of(listener))) if taken is None else (lambda: logger.info("reloaded")),
        terminal=terminal,
        strangers=strangers,
    )
    gc.collect()
    gc.freeze()  # what is imported by now stays shared between all workers
    return master.run()


def _fork_worker(name: str, settings: Settings, listener: socket.socket, build: Build) -> Child:
    def body(channel: socket.socket) -> int:
        _keep_only(listener.fileno(), channel.fileno())
        return serve_worker(settings, name, listener, channel, build)

    child = _with_channel(name, body)
    child.obeys = True
    return child


def execute_worker(name: str, argv: Sequence[str]) -> Child:
    """Start a command that beats over the channel that it inherits (`pulse.inherited`); signals tell it to end."""
    become = command(argv)

    def body(channel: socket.socket) -> int:
        lend(channel, os.environ)
        return become()

    return _with_channel(name, body)


def _with_channel(name: str, body: Callable[[socket.socket], int]) -> Child:
    ours, theirs = socket.socketpair()
    try:
        pid = fork(lambda: body(theirs))
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.settimeout(0)
    now = time.monotonic()
    return Child(name, pid, now, now, ours)


def _keep_only(*wanted: int) -> None:
    """Close every other descriptor of the master's: a claim, or another worker's channel, must end with the master.

    The objects that hold them live on in frames that are never returned to, so that none is closed twice.
    """
    floor = 3
    for descriptor in sorted(wanted):
        os.closerange(floor, descriptor)
        floor = descriptor + 1
    os.closerange(floor, max(floor, os.sysconf("SC_OPEN_MAX")))
