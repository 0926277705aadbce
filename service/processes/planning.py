"""The supervisor's plan: what to run, as a short-lived child has read it from the settings."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.processes.listener import CannotStart
from service.processes.spawn import program

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = 1  # of the plan, and of what is said on the command lines of children
PLAN_SECONDS = 120.0  # a migration may wait a minute for another one
MOST_BYTES = 65_536  # what a pipe holds


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run, as plain values; the JSON that the child prints has these names and `version`.

    `servers` are embedded servers in the order of their start, each a name and a stop signal.
    """

    bind: str | None  # None: no API workers
    data_dir: str
    grace: float
    drain: float
    mail_workers: int
    servers: list[tuple[str, int]]
    log_level: str
    log_format: str
    guide: list[str]  # lines for a person, once everything runs; {address} stands for where it listens

    @classmethod
    def read(cls, text: str) -> Plan:
        """Read the child's line; raises CannotStart for one of another version."""
        try:
            values: dict[str, Any] = json.loads(text)
            if values.pop("version") == VERSION:
                return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError):
            pass
        raise CannotStart("the code on disk is of another version: restart the supervisor")


class Planning:
    """A child that reads the settings and tries the servers; it prints one line of JSON, or one of error.

    The supervisor notes its exit code, as of every child.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._output, output = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._errors, errors = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.pid = program(argv, os.environ, output=output, errors=errors)
        os.close(output)
        os.close(errors)
        self.code: int | None = None
        self._until = time.monotonic() + PLAN_SECONDS

    def kill(self) -> None:
        """End it at once."""
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def kill_overdue(self) -> None:
        """End it if it takes too long."""
        if time.monotonic() > self._until:
            self.kill()

    def result(self) -> str:
        """Return what it has printed, once it has ended; raises CannotStart with its last line of error."""
        output, errors = _rest(self._output), _rest(self._errors)
        if self.code == 0:
            return output
        lines = errors.strip().splitlines() or [f"the settings could not be read: their reader ended with {self.code}"]
        refusal = CannotStart(lines[-1].removeprefix("vestibule: "))
        refusal.code = max(self.code or 1, 1)
        raise refusal


def _rest(pipe: int) -> str:
    data = os.read(pipe, MOST_BYTES)
    os.close(pipe)
    return data.decode(errors="replace")
