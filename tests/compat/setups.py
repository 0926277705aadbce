"""Runs the service on a set-up, and holds it to one of two ends: the whole walk works, or one line refuses."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.compat.walk import PROGRAM, command, walk
from tests.e2e.instance import HOST, QUICK, STOP_SECONDS, environment, launched, running
from tests.faults.clients import Clients
from tests.servers.ports import free_ports
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.servers.smtp import SmtpServer

WORKER = QUICK | {"WORKERS": "1", "RESEND_COOLDOWN_SECONDS": "0"}
DEAD = "mail dead"  # the walk's own warning
OUTCOME = "outcome"  # the property of a test that the table shows


@dataclass
class Setup:
    """One row of the table: the settings that reach its servers, and the mail server that the walk looks into."""

    folder: Path
    smtp: SmtpServer
    urls: dict[str, str]
    record: Callable[[str, object], None]

    @property
    def settings(self) -> dict[str, str]:
        """All that the service is told."""
        return WORKER | {"MAIL_URL": self.smtp.url, "DATA_DIR": str(self.folder / "data")} | self.urls

    def works(self, said: str = "", *, meanwhile: Callable[[], object] | None = None, named: str = "") -> None:
        """See that `up` starts on it and the whole walk goes through, without a warning but `said`.

        `meanwhile` happens between the start and the walk. The log has what is `named` after it.
        """
        with running(self.folder, "uvloop", self.settings) as instance:
            if meanwhile is not None:
                meanwhile()
            walk(instance.port, self.settings, self.smtp)
            wait_for(lambda: named in instance.said(), f"it names {named}")
        self.ends(instance.said(), said)

    def ends(self, log: str, said: str, *, needed: bool = True) -> None:
        """See that the log has no warning and no error but those expected, and note that the row works.

        What is expected must be there if it is `needed`.
        """
        complaints = [line for line in warnings(log) if DEAD not in line]
        unexpected = [line for line in complaints if not said or not re.search(said, line)]
        assert not unexpected, "\n".join(unexpected)
        assert complaints or not said or not needed, f"nothing said {said}"
        self.record(OUTCOME, f"works, and says: {_words(complaints[0])}" if complaints else "works")

    @contextmanager
    def apart(self) -> Iterator[Callable[[], str]]:
        """Run `serve` and `worker` around the body, with nothing awaited; give what they have said."""
        self.urls["BIND"] = f"{HOST}:{free_ports()}"
        logs = [self.folder / mode for mode in ("serve", "worker")]
        with ExitStack() as stack:
            variables = environment(self.settings)
            both = [stack.enter_context(launched([*PROGRAM, log.name], variables, log)) for log in logs]

            def said() -> str:
                return "".join(log.read_text(encoding="utf-8") for log in logs)

            yield said
            for one in both:
                one.terminate()
            assert [one.wait(STOP_SECONDS) for one in both] == [0, 0], said()

    def works_apart(self, said: str = "") -> None:
        """See that `serve` and `worker` start on it and the whole walk goes through, with warnings that say so."""
        with self.apart() as log:
            wait_for(lambda: ready(self.port), "it is ready", 30.0)
            if said:
                wait_for(lambda: re.search(said, log()), f"it says {said}")
            walk(self.port, self.settings, self.smtp)
        self.ends(log(), said)

    @property
    def port(self) -> int:
        """Where `apart` listens."""
        return int(self.urls["BIND"].rpartition(":")[2])

    def refused(self, says: str, *modes: str) -> None:
        """See that each command ends with one line that says so."""
        for mode in modes:
            ended = command(self.settings | {"BIND": "127.0.0.1:0"}, mode)
            lines = [line for line in ended.stderr.splitlines() if line]
            assert ended.returncode != 0, f"{mode} went on: {ended.stdout}"
            assert len(lines) == 1, f"{mode}: {ended.stderr}"
            assert re.search(says, lines[0]), f"{mode}: {lines[0]}"
        self.record(OUTCOME, f"refused: {lines[0].removeprefix('vestibule: ')}")


def ready(port: int) -> bool:
    """Return whether it takes registrations."""
    return Clients(port).ready()


def warnings(said: str) -> Iterator[str]:
    """Yield the lines of a log that a person should look at, and those that are no JSON."""
    for line in said.splitlines():
        try:
            entry: Mapping[str, object] = json.loads(line)
        except ValueError:
            yield line
        else:
            if entry.get("level") not in {"DEBUG", "INFO"}:
                yield line


def _words(line: str) -> str:
    """Return what a line of the log says, with its reason."""
    entry = json.loads(line)
    return ": ".join(str(entry[name]) for name in ("message", "reply", "reason", "error") if name in entry)
