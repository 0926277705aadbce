"""Start a program in a process group of its own that dies with the thread that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PR_SET_PDEATHSIG = 1  # linux/prctl.h
CANNOT_START = 127  # the shell's code for a program that it could not run
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Program:
    """What to run: `enter` changes the user in the child, `death_signal` comes when the parent has died.

    `descriptors` stay open in the program, under the same numbers.
    """

    argv: list[str]
    environment: Mapping[str, str]
    enter: Callable[[], None]
    death_signal: signal.Signals = signal.SIGKILL
    descriptors: Sequence[int] = ()


def stay() -> None:
    """Enter nothing: the program runs as we do."""


def spawn(program: Program, output: int) -> int:
    """Fork and execute the program; return its pid, which the caller has to wait for. `output` takes what it says.

    Call it from the main thread: the kernel sends the death signal when the *thread* that forked ends.
    """
    parent = os.getpid()
    held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # no handler of ours may run in the child
    try:
        pid = os.fork()
        if pid == 0:
            _become(program, output, parent)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return pid


def call(result: int, what: str) -> None:
    """Raise OSError unless a function of libc has answered 0."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def die_with(parent: int, death_signal: signal.Signals) -> None:
    """Have this process signalled when its parent, which is expected to be `parent`, has died."""
    if sys.platform == "linux":
        call(LIBC.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0), "prctl")
    if os.getppid() != parent:  # it died before we asked
        os._exit(CANNOT_START)


def _become(program: Program, output: int, parent: int) -> NoReturn:
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for descriptor in program.descriptors:
            os.set_inheritable(descriptor, True)  # noqa: FBT003 - the library's signature
        program.enter()
        die_with(parent, program.death_signal)  # after `enter`: a change of user clears it
        _forget_signals()
        os.execve(program.argv[0], program.argv, program.environment)  # noqa: S606 - no shell is the point
    except BaseException:  # noqa: BLE001 - the child must never return into the parent's code
        traceback.print_exc()
    finally:
        os._exit(CANNOT_START)


def _forget_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is not None:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
