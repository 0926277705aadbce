"""Carries finished log lines to a file descriptor without ever making the one who logs wait."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CAPACITY = 10_000  # lines, about 2 MB: ten seconds of a busy worker
PIPE_BUF = 4096  # the system writes so many bytes to a pipe in one piece: lines of several workers never mix
GATHER_SECONDS = 0.05  # of lines for one write: to wake the thread for each costs more than all the rest of the line
FAREWELL_SECONDS = 2.0  # a reader that is stalled when the process ends is waited for no longer


class LogWriter:
    """A bounded queue of lines and the thread that writes them, of one process.

    `write` never blocks, and its line leaves GATHER_SECONDS later. Without room it is dropped and counted, and the
    count is told in a line of its own as soon as there is room again. Without a thread (`threaded=False`, for a
    process that forks) a line is written at once if the descriptor can take it and dropped if not. After a fork the
    child makes a writer of its own; there the parent's does nothing.
    """

    def __init__(self, descriptor: int, dropped_line: Callable[[int], str], *, threaded: bool = True) -> None:
        self._descriptor = descriptor
        self._dropped_line = dropped_line
        self._pid = os.getpid()
        self._lines: deque[bytes] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._stopping = self._idle = False
        self._untold = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True) if threaded else None
        if self._thread is not None:
            self._thread.start()

    def write(self, line: str) -> None:
        """Queue one line that ends in a newline."""
        if os.getpid() != self._pid:
            return
        data = _bounded(line)
        if self._thread is None:
            self._write_now(data)
            return
        with self._changed:
            if self._stopping or len(self._lines) >= CAPACITY:
                self._drop(1)
                return
            self._lines.append(data)
            if self._idle:
                self._idle = False
                self._changed.notify()

    def stop(self) -> None:
        """Write what is queued, for a moment at most; later lines are dropped. May be called twice."""
        if os.getpid() != self._pid or self._thread is None:
            return
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(FAREWELL_SECONDS)

    def _drop(self, lines: int) -> None:
        self.dropped += lines
        self._untold += lines

    def _write_now(self, data: bytes) -> None:
        _, writable, _ = select.select((), (self._descriptor,), (), 0)
        if not writable or not self._put(data):
            self._drop(1)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._lines:
                    self._rest()
                if not self._lines and not self._untold:
                    return
                untold, self._untold = self._untold, 0
                batch, lines = self._batch(untold)
            if not self._put(batch):
                with self._changed:
                    self._drop(lines)
                    self._untold += untold
                    if self._stopping:
                        return

    def _rest(self) -> None:
        """Wait for a line, then a little for others, or for the end; holds the lock but while it waits."""
        self._idle = True
        self._changed.wait_for(lambda: self._lines or self._stopping)
        self._idle = False
        self._changed.wait_for(lambda: self._stopping, GATHER_SECONDS)

    def _batch(self, untold: int) -> tuple[bytes, int]:
        """Take whole lines of at most PIPE_BUF bytes together, led by the news of lines that were lost."""
        parts = [_bounded(self._dropped_line(untold))] if untold else []
        size, lines = sum(map(len, parts)), 0
        while self._lines and (not parts or size + len(self._lines[0]) <= PIPE_BUF):
            part = self._lines.popleft()
            parts.append(part)
            size += len(part)
            lines += 1
        return b"".join(parts), lines

    def _put(self, data: bytes) -> bool:
        """Write all of it; False when nobody can read it any more."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # someone made the shared descriptor non-blocking
                select.select((), (self._descriptor,), ())
            except OSError:
                return False
        return True


def _bounded(line: str) -> bytes:
    data = line.encode("utf-8", "backslashreplace")
    if len(data) <= PIPE_BUF:
        return data
    return data[: PIPE_BUF - 1].decode("utf-8", "ignore").encode() + b"\n"
