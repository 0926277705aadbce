"""A Redis of a test's own, to stop, kill and start again."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING, Self

from service.embedded.redis import EmbeddedRedis
from tests.servers.signals import send

if TYPE_CHECKING:
    from pathlib import Path


class OwnRedis:
    """One Valkey, running from the start; the context ends it, in whatever state it is."""

    def __init__(self, folder: Path) -> None:
        self._server = EmbeddedRedis(folder)
        self._pid = 0
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self, *, empty: bool = False) -> None:
        """Start it, with what it had saved or without, and wait until it answers."""
        if empty:
            shutil.rmtree(self._server.folder)
        self._pid = self._server.start()
        self._server.wait_ready(self._pid)
        self.url = self._server.url

    def kill(self) -> None:
        """Kill it with -9, running, stopped or ended."""
        if self._pid:
            send(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0

    def stall(self) -> None:
        """Stop the process: connections stay open and nothing is answered."""
        send(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on, with what it was sent meanwhile."""
        send(self._pid, signal.SIGCONT)
