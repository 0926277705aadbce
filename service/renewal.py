"""New code and settings for a running master: tried in a process of their own first, then executed in its place."""

from __future__ import annotations

import os
import tempfile
from io import BytesIO
from typing import IO, TYPE_CHECKING

from loguru import logger

from service.children import command, fork
from service.handover import Handover, execute

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from service.children import Child
    from service.terminal import Terminal

REFUSAL_BYTES = 1000  # a trial says one line


class Renewal:
    """Takes the command line of a trial, and what has to survive besides the children."""

    def __init__(self, trial: Sequence[str], bind: str, claim: int | None, terminal: Terminal) -> None:
        self._trial = trial  # a whole command line
        self._bind = bind
        self._claim = claim
        self._terminal = terminal
        self._said: IO[bytes] = BytesIO()

    def check(self) -> int:
        """Start a process that exits with 0 if a reload would work; return its pid. Raises OSError on a full disk."""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - it is read when the trial has ended
        become = command(self._trial)

        def body() -> int:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(self._said.fileno(), 2)
            return become()

        return fork(body)

    def refusal(self) -> str:
        """Return the last line that the ended trial said."""
        self._said.seek(0)
        lines = self._said.read(REFUSAL_BYTES).decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "the trial ended without a word"

    def take(self, listener: socket.socket, children: Sequence[Child]) -> None:
        """Execute this program anew in this process; returns, after a line in the log, only if that is impossible."""
        try:
            execute(Handover(self._bind, listener, self._claim, self._terminal.descriptor, list(children)))
        except OSError as error:
            logger.error("reload failed, the old code goes on", reason=error.strerror)
