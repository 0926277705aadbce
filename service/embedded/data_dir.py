"""DATA_DIR: made private, claimed by one `vestibule up` at a time, with a place for sockets whatever its length."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from service.embedded.errors import BadEnvironment, one_line

CLAIM = "up.lock"
CLAIM_PATIENCE = 0.5  # seconds: a look of `in_use` holds the lock for a moment
SOCKET_NAME_BYTES = 16  # of the longest name in the folder of sockets: pg/.s.PGSQL.5432
SOCKET_PATH_BYTES = 107  # sun_path in Linux, without its final zero
SHORT_PARENT = Path("/tmp")  # noqa: S108 - only ever a parent of a folder that nobody else can enter or foresee


def ensure(folder: Path) -> Path:
    """Make the folder, closed to others, and return its absolute path; raises BadEnvironment unless it is writable."""
    with one_line(folder):
        folder = folder.resolve()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


def claim(data_dir: Path) -> int:
    """Take the folder for one `up` and return the descriptor that holds the claim until it is closed.

    The claim ends with the last process that has the descriptor, so it outlives an exec if made inheritable.
    Raises BadEnvironment when another `up` has it.
    """
    data_dir = ensure(data_dir)
    with one_line(data_dir):
        lock = os.open(data_dir / CLAIM, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + CLAIM_PATIENCE
    while not locked(lock):
        if time.monotonic() > deadline:
            os.close(lock)
            raise BadEnvironment(f"{data_dir} is in use by another `vestibule up`")
        time.sleep(0.02)  # flock has no time-out of its own
    return lock


def in_use(data_dir: Path) -> bool:
    """Return whether an `up` holds the folder."""
    try:
        lock = os.open(data_dir / CLAIM, os.O_RDWR)
    except OSError:
        return False
    try:
        return not locked(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def locked(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file for this descriptor and those inherited from it; False when somebody else has it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sockets(data_dir: Path) -> Path:
    """Return a private folder whose path is short enough for Unix sockets, made if need be.

    It is DATA_DIR/run; where that path is too long, DATA_DIR/run is a link to a folder for temporary files, which is
    used again as long as it is ours and closed to others: anyone may have taken its place there.
    """
    run = data_dir / "run"
    with one_line(run):
        if _short(run):
            run.mkdir(mode=0o700, exist_ok=True)
            return run
        if run.is_symlink() and _private(run.readlink()):
            return run.readlink()
        with suppress(FileNotFoundError):
            run.unlink()
        parents = (Path(tempfile.gettempdir()), SHORT_PARENT)
        parent = next(parent for parent in parents if _short(parent / "vestibule-12345678"))
        folder = Path(tempfile.mkdtemp(prefix="vestibule-", dir=parent))
        run.symlink_to(folder)
    return folder


def sync(folder: Path) -> None:
    """Have the names in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _short(folder: Path) -> bool:
    return len(os.fsencode(folder)) + 1 + SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES


def _private(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
