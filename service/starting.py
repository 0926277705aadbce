"""From the beginning of a program until its master runs: what ends a first start, and what a later one leaves alone."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from service import logs
from service.children import Child, Post
from service.embedded.errors import BadEnvironment
from service.handover import execute
from service.listener import CannotStart
from service.master import Master
from service.renewal import Renewal
from service.settings import BadSettings, Settings
from service.supervise import API, MAIL, SERVERS
from service.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from service.handover import Handover

AGAIN_SECONDS = 1.0  # whoever edits a file is done by then, or by the next time
LAST_GRACE_SECONDS = 35.0  # the default grace, and what is spare, where the settings cannot be read
STOPS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def starting(taken: Handover | None) -> Iterator[Terminal]:
    """Until the master runs, SIGTERM and a terminal that closes end the start as Ctrl-C does, by KeyboardInterrupt.

    Gives the terminal that we were started on. After a reload all signals wait until the master listens to them, and
    what would have refused a start (the trial was a moment ago, and files change) leaves the children at work: this
    program is executed again, each second, until it can go on or is told to stop.
    """
    if taken is not None:
        terminal = Terminal(taken.terminal)
        try:
            yield terminal
        except (BadSettings, BadEnvironment, CannotStart, ImportError, OSError) as refusal:
            _hold(taken, terminal, " ".join(str(refusal).split()))
        return
    terminal = Terminal.controlling()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, terminal.interrupt)
    yield terminal


def _hold(taken: Handover, terminal: Terminal, refusal: str) -> NoReturn:
    """Try again in a second; raises SystemExit after a stop in order, for which no settings are needed."""
    if refusal != taken.refusal:
        sys.stderr.write(f"vestibule: reload failed, the old workers go on: {refusal}\n")
        taken.refusal = refusal
    while signal.sigtimedwait(STOPS, AGAIN_SECONDS) is None and not terminal.look(time.monotonic()):
        with suppress(OSError):
            execute(taken)
    logs.configure(Settings(), "master", threaded=False)  # the wanted way to log is among what cannot be read
    os.kill(os.getpid(), signal.SIGTERM)  # held still, until the master listens
    renewal = Renewal((), taken.bind, taken.claim, terminal)
    posts = _posts(taken.children)
    master = Master(posts, taken.listener, renewal, drain=0, announce=lambda: None, terminal=terminal)
    raise SystemExit(master.run())


def _posts(children: Sequence[Child]) -> list[Post]:
    """Return a post for each child, which nobody will hold after it; servers stop last, the first one started too."""
    posts = []
    for place, child in enumerate(children):
        tier = API if child.obeys else MAIL if child.channel else SERVERS + len(children) - place
        posts.append(Post(child.name, tier, _nobody, LAST_GRACE_SECONDS, renew=False, child=child))
    return posts


def _nobody() -> Child:
    raise CannotStart("the settings cannot be read")
