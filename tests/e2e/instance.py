"""Runs the real `vestibule up`, as its own program, in a folder of its own."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.ledger import Ledger
from tests.servers.ports import free_ports
from tests.servers.processes import kill
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@contextmanager
def running(folder: Path, loop: str, settings: dict[str, str]) -> Iterator[Instance]:
    """Run an `up` with these settings beside quick ones; it ends in order with the body, or dies with this process."""
    port = free_ports(1)
    own = {"DATA_DIR": str(folder / "data"), "BIND": f"{HOST}:{port}", "LOOP": loop, **QUICK, **settings}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
    environment = plain | {f"VESTIBULE_{name}": value for name, value in own.items()}
    output = folder / "output"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *COMMAND],
            stdout=sink,
            stderr=sink,
            env=environment,
            start_new_session=True,
        )
    instance = Instance(loop, port, folder / "data", output, process, own)
    try:
        wait_for(instance.ready, f"`vestibule up` is ready under {loop}", START_SECONDS)
        yield instance
    except BaseException:
        kill(process)
        raise
    _stop(instance)


def _stop(instance: Instance) -> None:
    """End it as a terminal would and hold it to its exit code; kill it when it does not end."""
    instance.process.send_signal(signal.SIGTERM)
    try:
        code = instance.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        kill(instance.process)
        raise
    assert code == 0, instance.said()[-2000:]
