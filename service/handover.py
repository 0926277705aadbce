"""Carries listening socket, claim, terminal and running children through the master's exec of its own new code."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from service.children import Child

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

VARIABLE = "_VESTIBULE_HANDOVER"  # not VESTIBULE_…: it is no setting
HELD = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)  # wait in the kernel until the new code listens


@dataclass(slots=True)
class Handover:
    """What the old code gives to the new: descriptors that stay open and children that stay ours."""

    bind: str
    listener: socket.socket
    claim: int | None = None
    terminal: int | None = None
    children: list[Child] = field(default_factory=list)
    refusal: str | None = None  # of the last try, by a program that could not go on from here


def take(environment: MutableMapping[str, str]) -> Handover | None:
    """Return what a master that executed this program left, taken from the environment; None on a first start."""
    text = environment.pop(VARIABLE, None)
    if text is None:
        return None
    told: dict[str, Any] = json.loads(text)
    if told["master"] != os.getpid():  # inherited by a stranger
        return None
    now = time.monotonic()
    children = [_child(one, now) for one in told["children"]]
    claim, terminal = told["claim"], told.get("terminal")
    _leave((claim, terminal), inheritable=False)
    return Handover(told["bind"], _socket(told["listener"]), claim, terminal, children, told.get("refusal"))


def execute(handover: Handover) -> NoReturn:
    """Execute this program anew with everything in the handover kept; raises OSError when that is impossible."""
    argv = [sys.executable, *sys.orig_argv[1:]]
    told = {
        "master": os.getpid(),
        "bind": handover.bind,
        "listener": handover.listener.fileno(),
        "claim": handover.claim,
        "terminal": handover.terminal,
        "children": [
            {
                "name": child.name,
                "pid": child.pid,
                "age": time.monotonic() - child.started,
                "channel": None if child.channel is None else child.channel.fileno(),
                "leaving": child.deadline is not None,
                "ready": child.ready,
                "obeys": child.obeys,
            }
            for child in handover.children
        ],
        "refusal": handover.refusal,
    }
    channels = [child.channel.fileno() for child in handover.children if child.channel]
    kept = (handover.listener.fileno(), handover.claim, handover.terminal, *channels)
    _leave(kept, inheritable=True)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        os.execve(argv[0], argv, {**os.environ, VARIABLE: json.dumps(told)})  # noqa: S606 - our own command line
    finally:  # only if it could not be executed
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _leave(kept, inheritable=False)


def _leave(descriptors: Iterable[int | None], *, inheritable: bool) -> None:
    for descriptor in descriptors:
        if descriptor is not None:
            os.set_inheritable(descriptor, inheritable)


def _socket(descriptor: int) -> socket.socket:
    kept = socket.socket(fileno=descriptor)
    kept.set_inheritable(False)
    kept.settimeout(0)
    return kept


def _child(told: dict[str, Any], now: float) -> Child:
    channel = None if told["channel"] is None else _socket(told["channel"])
    child = Child(told["name"], told["pid"], now - told["age"], now, channel, told["ready"])
    child.deadline = now if told["leaving"] else None
    child.obeys = told.get("obeys", channel is not None)
    return child
