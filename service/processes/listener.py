"""What one supervisor holds for as long as it lives: the listening socket of all API workers, and the pid file."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path

BACKLOG = 4096  # the kernel cuts it to net.core.somaxconn; a burst waits here while a worker is replaced
PROBE_SECONDS = 1.0  # a Unix socket's owner on the same machine answers at once or is gone
UNREAD_SECONDS = 10.0  # a peer that takes nothing of its answer for so long is cut off; phones lose their net for less
PID_FILE = "vestibule.pid"


class CannotStart(Exception):
    """The machine does not allow a start; the text is one line that says what to do, `code` the exit code."""

    code = 1


def open_listener(bind: str) -> socket.socket:
    """Return a listening, non-blocking socket for `host:port`, `[v6]:port` or `unix:/path`.

    Raises CannotStart with one line when the address is taken, not ours or not allowed.
    """
    try:
        listener = _unix(Path(bind.removeprefix("unix:"))) if bind.startswith("unix:") else _tcp(bind)
    except (OSError, UnicodeError) as error:  # the latter for a label of a name that is empty or too long
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            why = "it is taken: stop the program that listens there, or choose another"
        else:
            why = str(getattr(error, "strerror", None) or error).partition(" (while")[0]  # on which it stands already
        raise CannotStart(f"VESTIBULE_BIND={bind}: {why}") from None
    listener.settimeout(0)
    return listener


def address_of(listener: socket.socket) -> str:
    """Return where the socket listens, as people write it: a URL or `unix:/path`."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if listener.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"


def forget(bind: str) -> None:
    """Remove a Unix socket's path."""
    if bind.startswith("unix:"):
        Path(bind.removeprefix("unix:")).unlink(missing_ok=True)


def _tcp(bind: str) -> socket.socket:
    host, _, port = bind.rpartition(":")
    family, *_, address = socket.getaddrinfo(
        host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    six = family == socket.AF_INET6
    listener = socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=six)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_SECONDS * 1000))  # tcp(7); inherited
    return listener


def _unix(path: Path) -> socket.socket:
    if path.is_socket() and not _answers(path):  # the owner was killed
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    path.chmod(0o666)
    listener.listen(BACKLOG)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_SECONDS)
        return probe.connect_ex(os.fspath(path)) != errno.ECONNREFUSED


def take_pid_file(data_dir: Path) -> int:
    """Write our pid to it and return the descriptor, locked as long as it is open: the file alone means nothing.

    Raises CannotStart when another supervisor has it, or it cannot be written.
    """
    path = data_dir / PID_FILE
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except BlockingIOError:
        raise CannotStart(f"{data_dir} is in use by another supervisor") from None
    except OSError as error:
        raise CannotStart(f"{path} cannot be written: {error.strerror}") from None
    return descriptor


def pid_file_holder(data_dir: Path) -> int | None:
    """Return the pid of the supervisor that holds the pid file; None if there is none."""
    try:
        with (data_dir / PID_FILE).open("r+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read())
    except (OSError, ValueError):
        return None
    return None
