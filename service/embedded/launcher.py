"""Starts the servers of one machine as child processes that die with their parent, and watches them."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn

from service.embedded.data_dir import BadEnvironment, ensure, one_line
from service.processes.spawn import die_with, fork

if TYPE_CHECKING:
    from collections.abc import Mapping

LOG_BYTES = 1_000_000  # a log that has grown past it is begun anew at the next start
LOOK_SECONDS = 0.01  # between looks at another process, which tells no event
ERROR_MARKS = ("FATAL", "PANIC", "error", "Error", "failed", "Failed")


@dataclass(frozen=True, slots=True)
class Program:
    """What to run; `death_signal` comes when the parent has died."""

    argv: list[str]
    environment: Mapping[str, str]
    death_signal: signal.Signals = signal.SIGKILL

    def run(self, output: int) -> int:
        """Run it to its end in a child and return its exit code; `output` takes what it says."""
        parent = os.getpid()

        def body() -> NoReturn:
            os.dup2(output, 1)
            os.dup2(output, 2)
            self.become(parent)

        return os.waitstatus_to_exitcode(os.waitpid(fork(body), 0)[1])

    def become(self, parent: int) -> NoReturn:
        """Turn this process into the program, which dies with `parent`."""
        die_with(parent, self.death_signal)
        os.execvpe(self.argv[0], self.argv, dict(self.environment))  # noqa: S606 - no shell is the point


class ServerProcess(ABC):
    """One server under DATA_DIR, which may be started again from the same object after it has ended.

    The supervisor's child calls `become`; the supervisor waits for the pid, sends `stop_signal` to stop it and SIGKILL
    when that takes too long. Nothing is touched before `become`, so an object may also stand for a server that
    already runs. While any process of a server lives, its lock is held and no second one can start.
    """

    name: ClassVar[str]
    setting: ClassVar[str]  # that names such a server which runs elsewhere
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    lock_patience: ClassVar[float] = 5.0  # seconds for what a killed server left behind to end

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self.log = self.data_dir / "logs" / f"{self.name}.log"  # takes what the server says

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients reach it; the same after every start."""

    @abstractmethod
    def ready(self) -> bool:
        """Return within 2 s, mostly at once, whether it serves a real connection."""

    @abstractmethod
    def prepare(self) -> Program:
        """Make or repair what is on disk and return what to execute; runs under the lock. Raises BadEnvironment."""

    def evict(self) -> None:  # noqa: B027 - most leave nothing
        """End what a killed server has left running; called while another process holds the lock."""

    def become(self, parent: int) -> NoReturn:
        """Turn this process into the server, which dies with `parent`; raises BadEnvironment.

        What a killed server has left is ended, and waited for some seconds. The lock stays with the server's processes.
        """
        with one_line(self.data_dir):
            ensure(self.data_dir)
            ensure(self.log.parent)
            lock = self._lock()
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            if os.fstat(output).st_size > LOG_BYTES:
                os.ftruncate(output, 0)
            os.dup2(output, 1)
            program = self.prepare()
        os.dup2(output, 2)
        os.set_inheritable(lock, True)  # noqa: FBT003 - the library's signature
        program.become(parent)

    def wait_ready(self, pid: int, timeout: float = 30.0) -> None:
        """Return once it is ready; raises BadEnvironment when it ends, or not in time. Does not reap it."""
        deadline = time.monotonic() + timeout
        while not self.ready():
            if ended(pid):
                with one_line(self.log):
                    said = last_words(self.log.read_text(encoding="utf-8", errors="replace"))
                raise BadEnvironment(f"{self.name} ended while it started: {said or f'see {self.log}'}")
            if time.monotonic() > deadline:
                raise BadEnvironment(f"{self.name} was not ready within {timeout:g} s: see {self.log}")
            time.sleep(LOOK_SECONDS)

    def _lock(self) -> int:
        lock = os.open(self.data_dir / f"{self.name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + self.lock_patience
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            self.evict()
            time.sleep(LOOK_SECONDS)
        os.close(lock)
        raise BadEnvironment(f"{self.name} in {self.data_dir} is already running")


def wheel(module: str, pattern: str) -> Path:
    """Return a file of an installed wheel, without importing it; raises BadEnvironment."""
    spec = find_spec(module)
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        for found in Path(place).glob(pattern):
            return found
    raise BadEnvironment(f"the embedded servers need the packages of vestibule[embedded]: {module} is not installed")


def inside(folder: Path) -> dict[int, str]:
    """Return the pid and command line of each process that we may look at and whose working folder this is."""
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
            if (entry / "cwd").readlink() == folder:
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found[int(entry.name)] = title
    return {pid: title for pid, title in found.items() if title}


def ended(pid: int) -> bool:
    """Return whether a process is gone, or waits to be reaped by its parent."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return True
    return stat.rpartition(b")")[2].split()[:1] == [b"Z"]  # proc(5): the state


def last_words(said: str) -> str:
    """Return the last line that names an error, else the last line, else nothing."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [line for line in lines if any(mark in line for mark in ERROR_MARKS)]
    return (named or lines or [""])[-1]
