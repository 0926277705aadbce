"""Starts processes that die with their parent; the standard library alone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PR_SET_PDEATHSIG = 1  # linux/prctl.h
CANNOT_START = 127  # the shell's code for a program that it could not run
LIBC = ctypes.CDLL(None, use_errno=True)
PYTHON = (sys.executable, "-P", "-m")  # -P: no module of the current folder is taken for ours


def die_with(parent: int, death_signal: int = signal.SIGKILL) -> None:
    """Have this process signalled when its parent has died, which must be `parent` (in a container it may be 1)."""
    if LIBC.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent:  # it died before we asked
        os._exit(CANNOT_START)


def fork(body: Callable[[], int]) -> int:
    """Run `body` in a child with a session of its own that is killed when this process ends; return its pid.

    The child exits with what `body` returns, or with 1 after an exception. Call it from the main thread: the kernel
    sends the death signal when the *thread* that forked ends.
    """
    parent = os.getpid()
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        die_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        code = body()
    except BaseException as error:  # noqa: BLE001 - a child must never return into the parent's code
        sys.stderr.write(f"vestibule: a process ended with {type(error).__name__}\n")
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def execute(argv: Sequence[str], *descriptors: int) -> NoReturn:
    """Turn this process into a program that reads nothing, with these descriptors open under the same numbers."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - the library's signature
    os.execv(argv[0], list(argv))  # noqa: S606 - no shell is the point


def command(*arguments: str) -> list[str]:
    """Return the command line that runs our own console command with this interpreter."""
    return [*PYTHON, "service.cli", *arguments]


def supervise(mode: str) -> NoReturn:
    """Become the supervisor: a fresh program, without the memory of the command line's libraries."""
    os.execv(sys.executable, [*PYTHON, "service.processes.supervisor", mode])  # noqa: S606 - no shell is the point


def set_title(title: str) -> None:
    """Name this process for `ps`."""
    with suppress(ImportError):
        from setproctitle import setproctitle  # noqa: PLC0415 - a build without it still serves

        setproctitle(f"vestibule {title}")
