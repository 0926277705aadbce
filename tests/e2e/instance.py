"""Runs the real `vestibule up`, as its own program, in a folder of its own."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.ledger import Ledger
from tests.servers.ports import free_ports
from tests.servers.processes import kill
from tests.servers.waiting import child, patience, titled, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 20.0
QUICK = {"BCRYPT_COST": "4", "ALLOW_WEAK_HASH": "1", "WORKERS": "2", "MAIL_WORKERS": "1"}
COMMAND = [sys.executable, str(Path(sys.executable).with_name("vestibule")), "up"]


@dataclass
class Instance:
    """A running `up`, and what it must keep to itself."""

    loop: str
    port: int
    data_dir: Path
    output: Path
    process: subprocess.Popen[bytes]
    settings: dict[str, str]
    ledger: Ledger = field(default_factory=Ledger)

    def said(self) -> str:
        """Return what it has written so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def titled(self, title: str) -> list[int]:
        """Return the pids of its processes whose title begins so: `api worker`, `mail worker`, `generation`."""
        return titled(self.process.pid, title)

    def child(self, role: str) -> int:
        """Return the pid of its server or mail worker, 0 if there is none."""
        return child(self.process.pid, role)

    def ready(self) -> bool:
        """Return whether it can take registrations and has said that it runs."""
        assert self.process.poll() is None, self.said()
        connection = http.client.HTTPConnection(HOST, self.port, timeout=3)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK and "runs on" in self.said()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return our own environment with these settings of the service alone."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
    return plain | {f"VESTIBULE_{name}": value for name, value in settings.items()}


@contextmanager
def launched(
    command: Sequence[str], variables: Mapping[str, str], output: Path, stdin: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own; nothing of it is left after the body, nor after this process."""
    argv = ["setpriv", "--pdeathsig", "KILL", "--", *command]
    with output.open("wb") as sink:
        process = subprocess.Popen(argv, env=variables, stdin=stdin, stdout=sink, stderr=sink, start_new_session=True)
    try:
        yield process
    finally:
        kill(process)


@contextmanager
def running(
    folder: Path, loop: str, settings: Mapping[str, str], variables: Mapping[str, str] | None = None
) -> Iterator[Instance]:
    """Run an `up` with these settings beside quick ones; it ends in order with the body, or dies with this process."""
    port, output = free_ports(), folder / "output"
    own = {"DATA_DIR": str(folder / "data"), "BIND": f"{HOST}:{port}", "LOOP": loop, **QUICK, **settings}
    with launched(COMMAND, environment(own) | dict(variables or {}), output) as process:
        instance = Instance(loop, port, folder / "data", output, process, own)
        wait_for(instance.ready, f"`vestibule up` is ready under {loop}", START_SECONDS)
        yield instance
        if process.poll() is None:
            process.terminate()
        assert process.wait(patience(STOP_SECONDS)) == 0, instance.said()[-2000:]
