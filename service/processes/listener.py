"""Opens the one listening socket that every API worker shares."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

BACKLOG = 4096  # the kernel cuts it to net.core.somaxconn; a burst waits here while a worker is replaced
PROBE_SECONDS = 1.0  # a Unix socket's owner on the same machine answers at once or is gone


class CannotStart(Exception):
    """The machine does not allow a start; the text is one line that says what to do, `code` the exit code."""

    code = 1


def open_listener(bind: str) -> socket.socket:
    """Return a listening, non-blocking socket for `host:port`, `[v6]:port` or `unix:/path`.

    Raises CannotStart with one line when the address is taken, not ours or not allowed.
    """
    try:
        listener = _unix(Path(bind.removeprefix("unix:"))) if bind.startswith("unix:") else _tcp(bind)
    except (OSError, UnicodeError) as error:
        raise CannotStart(_explain(bind, error)) from None
    listener.listen(BACKLOG)
    listener.settimeout(0)
    return listener


def address_of(listener: socket.socket) -> str:
    """Return where the socket listens, as people write it: a URL or `unix:/path`."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if listener.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"


def forget(listener: socket.socket) -> None:
    """Close the socket; a Unix socket's path goes with it."""
    if listener.family == socket.AF_UNIX:
        Path(listener.getsockname()).unlink(missing_ok=True)
    listener.close()


def _tcp(bind: str) -> socket.socket:
    host, _, port = bind.rpartition(":")
    family, kind, protocol, _, address = socket.getaddrinfo(
        host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


def _unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            _remove_if_dead(path)
        listener.bind(os.fspath(path))
        path.chmod(0o666)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_if_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()


def _explain(bind: str, error: OSError | UnicodeError) -> str:
    if isinstance(error, socket.gaierror | UnicodeError):  # the latter for a label that is empty or too long
        return f"VESTIBULE_BIND={bind}: this host name is not known; use an address of this machine"
    if error.errno == errno.EADDRINUSE:
        port = bind.rpartition(":")[2]
        return f"port {port} is taken ({bind}): stop the program that listens there, or set VESTIBULE_BIND to another"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"VESTIBULE_BIND={bind} is no address of this machine"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return (
            f"VESTIBULE_BIND={bind} is not allowed to this user; use a port from 1024 or a folder that can be written"
        )
    return f"VESTIBULE_BIND={bind}: {error.strerror or error}"
