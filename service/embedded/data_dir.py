"""The folder DATA_DIR: short paths for its sockets, the code keys made there, and the refusals in one line."""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import os
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from service.processes.listener import CannotStart
from service.setting_values import KEY_BYTES, CodeKeys

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
SOCKET_NAME_BYTES = 16  # of the longest name in the folder of sockets: pg/.s.PGSQL.5432
SOCKET_PATH_BYTES = 107  # sun_path in Linux, without its final zero
SHORT_PARENT = Path("/tmp")  # noqa: S108 - of a folder that must be ours and closed to others
KEYS = "code_keys"


class BadEnvironment(CannotStart):
    """The machine refuses what a server needs; the text is one line that tells the operator what to change."""


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals about `path` into BadEnvironment."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise no_space(path) from None
        raise BadEnvironment(f"cannot write to {error.filename or path}: {error.strerror}") from None


def no_space(path: Path) -> BadEnvironment:
    """Return the refusal of a full disk."""
    return BadEnvironment(f"no space left for {path}: the embedded servers need about 100 MB to begin with")


def private(path: str, flags: int) -> int:
    """Open a file of our own, for `open`."""
    return os.open(path, flags, 0o600)


def ensure(folder: Path) -> Path:
    """Make the folder, closed to others, and return its absolute path."""
    folder = folder.resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def sockets(data_dir: Path) -> Path:
    """Return a private folder whose path fits Unix sockets and URLs, made if need be; raises BadEnvironment."""
    folder = data_dir / "run"
    path = os.fsencode(folder)
    foreign = path != str(folder).encode(errors="replace")  # no URL carries it: the locale is not UTF-8
    if foreign or len(path) + 1 + SOCKET_NAME_BYTES > SOCKET_PATH_BYTES:
        folder = SHORT_PARENT / f"vestibule-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]}"
    with one_line(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.stat(follow_symlinks=False)
    if folder.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise BadEnvironment(f"{folder} must be a folder that only this user can enter: remove it")
    return folder


def kept_keys(data_dir: Path) -> dict[str, bytes]:
    """Return the keys of DATA_DIR/code_keys, made at the first call; calls at the same time return the same keys.

    Raises BadEnvironment when the file cannot be written or does not hold keys: making new ones would kill every code
    that is on its way.
    """
    path = data_dir / KEYS
    with (
        one_line(path),
        open(ensure(data_dir) / KEYS, "a+", encoding="ascii", errors="replace", opener=private) as file,
    ):
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        if not text:
            text = f"k1:{base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}\n"
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    try:
        return TypeAdapter(CodeKeys).validate_python(text.strip())
    except ValidationError:
        raise BadEnvironment(f"{path} does not hold keys as kid:base64,…: correct it or remove it") from None
