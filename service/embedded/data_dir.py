"""The folder DATA_DIR: who may read it, short paths for its sockets, its claim, and the code keys made there."""

from __future__ import annotations

import base64
import fcntl
import os
import secrets
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from service.embedded.launcher import BadEnvironment, one_line
from service.setting_values import KEY_BYTES, CodeKeys

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


FILE = "code_keys"


def kept_keys(data_dir: Path) -> dict[str, bytes]:
    """Return the keys of DATA_DIR/code_keys, made at the first call; whoever calls at the same time gets the same.

    Raises BadEnvironment when the file cannot be written or does not hold keys: making new ones would kill every code
    that is on its way.
    """
    data_dir = ensure(data_dir)
    path = data_dir / FILE
    with one_line(path):
        if not path.exists():
            _make(path)
        text = path.read_text(encoding="ascii", errors="replace").strip()
    try:
        return TypeAdapter(CodeKeys).validate_python(text)
    except ValidationError:
        raise BadEnvironment(f"{path} does not hold keys as kid:base64,…: mend it or remove it") from None


def _make(path: Path) -> None:
    """Write aside, sync, then link: the file is whole when it appears, and the first of two makers wins."""
    new = path.with_name(f".{FILE}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(f"k1:{base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(new)
        except FileExistsError:
            return
    finally:
        new.unlink(missing_ok=True)
    sync(path.parent)
