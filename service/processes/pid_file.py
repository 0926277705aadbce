"""The pid file of a supervisor, locked as long as it lives: the file alone means nothing, its lock does."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from service.processes.listener import CannotStart

if TYPE_CHECKING:
    from pathlib import Path

NAME = "vestibule.pid"


def take(data_dir: Path) -> int | None:
    """Write our pid to it and return the locked descriptor; None when another supervisor has it.

    Raises CannotStart when it cannot be written.
    """
    path = data_dir / NAME
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                break
            os.close(descriptor)  # its last owner has removed it meanwhile
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except BlockingIOError:
        return None
    except OSError as error:
        raise CannotStart(f"{path} cannot be written: {error.strerror}") from None
    return descriptor


def holder(data_dir: Path) -> int | None:
    """Return the pid of the supervisor that holds the pid file; None if there is none."""
    try:
        with (data_dir / NAME).open("r+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read())
    except (OSError, ValueError):
        return None
    return None
