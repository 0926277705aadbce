"""DATA_DIR/vestibule.pid: how `vestibule reload` finds the master."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = "vestibule.pid"


@contextmanager
def pid_file(data_dir: Path) -> Iterator[None]:
    """Keep our pid in the folder while the body runs.

    Another master's file is left as it is, and a folder that cannot be written is no reason not to serve.
    """
    path = data_dir / FILE
    owner = master_of(data_dir)
    if owner not in {None, os.getpid()}:
        logger.warning("another master keeps the pid file", path=path, pid=owner)
        yield
        return
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_name(f".{FILE}.{os.getpid()}")
        new.write_text(f"{os.getpid()}\n", encoding="ascii")
        new.replace(path)
    except OSError as error:
        logger.warning("no pid file, `vestibule reload` will not find this master", path=path, reason=error.strerror)
    try:
        yield
    finally:
        if _read(path) == os.getpid():
            with suppress(OSError):
                path.unlink()


def master_of(data_dir: Path) -> int | None:
    """Return the pid of the running master that the folder's file names; None if there is none."""
    pid = _read(data_dir / FILE)
    if pid is None:
        return None
    words = _command_line(pid)
    return pid if any(f"vestibule {word}" in words for word in ("up", "serve")) else None


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        if Path("/proc/self").exists():
            return ""
    shown = subprocess.run(["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603 - a number
    return shown.stdout
