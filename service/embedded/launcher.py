"""Starts the servers of one machine as child processes that die with their parent, and watches them."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn

from service.embedded import data_dir as folders
from service.embedded.data_dir import BadEnvironment, no_space, one_line
from service.processes.spawn import die_with, fork

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Program:
    """What to run: `enter` changes the user, `death_signal` comes when the parent has died."""

    argv: list[str]
    environment: Mapping[str, str]
    enter: Callable[[], None]
    death_signal: signal.Signals = signal.SIGKILL

    def become(self, parent: int) -> NoReturn:
        """Turn this process into the program, which dies with `parent`."""
        self.enter()
        die_with(parent, self.death_signal)  # after `enter`: a change of user clears it
        os.execve(self.argv[0], self.argv, dict(self.environment))  # noqa: S606 - no shell is the point


def stay() -> None:
    """Enter nothing: the program runs as we do."""


def run(program: Program, output: int) -> int:
    """Run a short program and return its exit code; `output` takes what it says."""
    parent = os.getpid()

    def body() -> NoReturn:
        os.dup2(output, 1)
        os.dup2(output, 2)
        program.become(parent)

    return os.waitstatus_to_exitcode(os.waitpid(fork(body), 0)[1])


def call(result: int, what: str) -> None:
    """Raise OSError unless a function of libc has answered 0."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def inside(folder: Path) -> dict[int, str]:
    """Return the pid and command line of each process that we may look at and whose working folder this is."""
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == folder:
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found[int(entry.name)] = title
        except OSError:  # it has ended, or belongs to another user
            continue
    return {pid: title for pid, title in found.items() if title}


LOG_BYTES = 1_000_000  # a log that has grown past it is begun anew at the next start
LOOK_SECONDS = 0.01
ERROR_MARKS = ("FATAL", "PANIC", "error", "Error", "failed", "Failed")
FREE_BYTES = 1_000_000  # with less than that on the disk no server starts


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

    @property
    def log(self) -> Path:
        """The file that takes what the server says."""
        return self.data_dir / "logs" / f"{self.name}.log"

    def said(self) -> str:
        """Return the last error that its log names."""
        with one_line(self.log):
            said = self.log.read_bytes()
        return last_words(said.decode(errors="replace")) or f"see {self.log}"

    def become(self, parent: int) -> NoReturn:
        """Turn this process into the server, which dies with `parent`; raises BadEnvironment.

        What a killed server has left is ended, and waited for some seconds. The lock stays with the server's processes.
        """
        self.data_dir = folders.ensure(self.data_dir)
        lock = self._lock()
        with one_line(self.data_dir):
            output = self._open_log()
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
                raise BadEnvironment(self._why(f"ended while it started: {self.said()}"))
            if time.monotonic() > deadline:
                raise BadEnvironment(self._why(f"was not ready within {timeout:g} s: see {self.log}"))
            time.sleep(LOOK_SECONDS)  # another process, which tells no event

    def _why(self, otherwise: str) -> str:
        disk = os.statvfs(self.data_dir)
        if disk.f_bavail * disk.f_frsize < FREE_BYTES:
            return no_space(self.data_dir)
        return f"{self.name} {otherwise}"

    def _open_log(self) -> int:
        self.log.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if os.fstat(descriptor).st_size > LOG_BYTES:
            os.ftruncate(descriptor, 0)
        return descriptor

    def _lock(self) -> int:
        with one_line(self.data_dir):
            lock = os.open(self.data_dir / f"{self.name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + self.lock_patience
        while not folders.locked(lock):
            if time.monotonic() > deadline:
                os.close(lock)
                raise BadEnvironment(f"{self.name} in {self.data_dir} is already running")
            self.evict()
            time.sleep(LOOK_SECONDS)  # another process, which tells no event
        return lock


def wheel(module: str, pattern: str, *, executable: bool = True) -> Path:
    """Return a file of an installed wheel, without importing it; raises BadEnvironment."""
    spec = find_spec(module)
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        for found in Path(place).glob(pattern):
            if not executable or os.access(found, os.X_OK):
                return found
    raise BadEnvironment(missing(module))


def missing(module: str, libraries: Path = Path("/lib")) -> str:
    """Return the line for a wheel that is not installed, or cannot be on a system whose C library is musl."""
    if any(libraries.glob("ld-musl-*")):
        return f"{module} has no build for musl: use a system with glibc, or set VESTIBULE_DATABASE_URL and _REDIS_URL"
    return f"the embedded servers need the packages of vestibule[embedded]: {module} is not installed"


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
