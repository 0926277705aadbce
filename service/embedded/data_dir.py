"""The folder DATA_DIR: who may read it, short paths for its sockets, its claim, and the code keys made there."""

from __future__ import annotations

import base64
import errno
import fcntl
import os
import secrets
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from service.processes.listener import CannotStart
from service.setting_values import KEY_BYTES, CodeKeys

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class BadEnvironment(CannotStart):
    """The machine refuses what a server needs; the text is one line that tells the operator what to change."""


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals about `path` into BadEnvironment."""
    try:
        yield
    except OSError as error:
        reason = f"cannot write to {path}: {error.strerror or type(error).__name__}"
        raise BadEnvironment(no_space(path) if error.errno in NO_SPACE else reason) from None


def no_space(path: Path) -> str:
    """Return the line for a full disk."""
    return f"no space left for {path}: the embedded servers need about 100 MB to begin with"


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


def locked(descriptor: int) -> bool:
    """Lock an open file for this descriptor and those inherited from it; False when another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    """Return the keys of DATA_DIR/code_keys, made at the first call; calls at the same time return the same keys.

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
        raise BadEnvironment(f"{path} does not hold keys as kid:base64,…: correct it or remove it") from None


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
