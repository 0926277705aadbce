"""Starts processes that end with their parent, and says how soon a fallen one may be started again."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from service.embedded.spawn import die_with

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

QUICK_SECONDS = 10.0  # a process that fell sooner than this counts towards a crash loop
FREE_TRIES = 2  # a kill, and a second one at once, are no loop
FIRST_DELAY = 0.2
LONGEST_DELAY = 15.0  # someone mends the cause meanwhile and should not have to wait longer than this

# What passes between the master and a worker, one byte each.
READY, BEAT, SUCCESSOR = b"R", b".", b"S"  # from the worker
DRAIN, RETIRE, STOP = b"d", b"r", b"s"  # from the master, to an API worker


@dataclass(slots=True, eq=False)
class Child:
    """A running process of ours; `channel` is there for workers, and those that `obey` take orders over it."""

    name: str
    pid: int
    started: float
    heard: float
    channel: socket.socket | None = None
    ready: bool = False
    deadline: float | None = None
    obeys: bool = False

    def tell(self, order: bytes) -> None:
        """Send one order; a worker that is gone or does not read loses it, its deadline settles the rest."""
        if self.obeys and self.channel is not None:
            with suppress(OSError):
                self.channel.send(order)

    def signal(self, number: int) -> None:
        """Signal the process; one that is gone already is no error."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process and its process group, at once."""
        self.signal(signal.SIGKILL)
        self.sweep()

    def sweep(self) -> None:
        """End what an ended process has left in its own process group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


@dataclass(slots=True)
class Pace:
    """How long to wait before the next try: not at all for a kill now and then, ever longer in a crash loop."""

    falls: int = 0

    def fell(self, lived: float) -> float:
        """Count one fall after so many seconds of life and return the seconds to wait."""
        self.falls = self.falls + 1 if lived < QUICK_SECONDS else 1
        beyond = self.falls - FREE_TRIES
        return 0.0 if beyond <= 0 else min(FIRST_DELAY * 2 ** min(beyond - 1, 10), LONGEST_DELAY)


@dataclass(slots=True, eq=False)
class Post:
    """One process to keep running: how to start it, and when it stops relative to the others.

    Posts of a lower tier stop first. `ends` is the signal that asks for a stop (children that obey are asked over
    their channel), `grace` the seconds that they get for it. `renew` posts are replaced when new code
    or settings arrive.
    """

    name: str
    tier: int
    start: Callable[[], Child]
    grace: float
    ends: int = signal.SIGTERM
    renew: bool = True
    pace: Pace = field(default_factory=Pace)
    child: Child | None = None
    successor: Child | None = None
    due: float = 0.0

    def stop(self, child: Child, now: float, order: bytes = STOP) -> None:
        """Ask one child of this post to end, and set the time at which it will be made to."""
        child.deadline = now + self.grace
        if child.obeys and child.channel is not None:
            child.tell(order)
        else:
            child.signal(self.ends)


def fork(body: Callable[[], int]) -> int:
    """Run `body` in a child that leads its own session and is killed when this process ends; return its pid.

    The child exits with what `body` returns, or with 1 and one line when it raises. Call it from the main thread:
    the parent-death signal fires at the end of the thread that forked.
    """
    parent = os.getpid()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return pid
    code = 1
    try:
        _settle(parent)
        code = body()
    except BaseException as error:  # noqa: BLE001 - a child must not return into the master's code, whatever happens
        sys.stderr.write(f"vestibule: a process ended with {type(error).__name__}\n")
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _settle(parent: int) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    die_with(parent, signal.SIGKILL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def command(argv: Sequence[str], preexec: Callable[[], None] | None = None) -> Callable[[], int]:
    """Return a body for `fork` that becomes another program."""

    def become() -> int:
        if preexec is not None:
            preexec()
        os.execvp(argv[0], list(argv))  # noqa: S606 - our own command lines, no shell

    return become


def vestibule(*arguments: str) -> list[str]:
    """Return the command line that runs our own console command with this interpreter.

    It contains `vestibule <first argument>`, by which operators find the process.
    """
    script = Path(sys.executable).with_name("vestibule")
    if script.is_file():
        return [sys.executable, os.fspath(script), *arguments]
    return [sys.executable, "-c", "from service.cli import main; raise SystemExit(main())  # vestibule", *arguments]


def stopped(pid: int) -> bool:
    """Return whether SIGSTOP has stopped a process and nobody has let it go on; False where the system cannot tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[:1] == [b"T"]  # proc(5): the state; a debugger's stop is another one, t


def reap() -> deque[tuple[int, int]]:
    """Collect every ended child without waiting: (pid, exit code, negative for a signal). As pid 1, strangers too."""
    ended: deque[tuple[int, int]] = deque()
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, os.waitstatus_to_exitcode(status)))
