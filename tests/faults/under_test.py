"""Starts the stand-in service as its own program, looks at its processes, and asks it."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.e2e.instance import HOST, environment, launched
from tests.servers.ports import free_ports
from tests.servers.waiting import titled, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROGRAM = Path(__file__).with_name("stand_in.py")
STARTED = re.compile(r'"started".*"child": ?"api-\d+", ?"pid": ?(\d+)')
ANSWER = re.compile(r"\d+ v\d")
WORKERS = 2


@dataclass
class Running:
    """A running stand-in: its address, its supervisor, its output, and the folder in which it looks for wishes."""

    port: int
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def supervisor(self) -> psutil.Process:
        """The supervisor's process."""
        return psutil.Process(self.process.pid)

    def becomes(self, version: str) -> None:
        """Replace the code."""
        self.folder.joinpath("version").write_text(version, encoding="utf-8")

    def workers(self) -> list[int]:
        """Return the pids of the API workers that were ready and still run, by their generation's own word."""
        told = {int(pid) for pid in STARTED.findall(self.said())}
        return sorted(told & set(titled(self.process.pid, "api worker")))

    def titled(self, title: str) -> list[int]:
        """Return the pids of the processes whose title begins so."""
        return titled(self.process.pid, title)

    def said(self, since: int = 0) -> str:
        """Return what the service has printed so far, after so many characters."""
        return self.folder.joinpath("output").read_text(encoding="utf-8")[since:]

    def says(self, text: str, since: int = 0, promised: float = 20.0) -> None:
        """Wait until it has said this."""
        wait_for(lambda: text in self.said(since), f"it says {text}", promised)

    def starts_workers(self, number: int) -> None:
        """Wait until there are so many API workers, ready or not."""
        wait_for(lambda: len(self.titled("api worker")) == number, "the workers are being started")

    def settles(self) -> None:
        """Wait until there is one generation, whose workers are ready and answer."""
        wait_for(lambda: len(self.titled("generation")) == 1 and len(self.workers()) == WORKERS, "it has settled")
        assert self.get()[0] == http.HTTPStatus.OK

    def get(self, path: str = "/", timeout: float = 10.0) -> tuple[int, str]:
        """Ask once over a new connection; return status and body."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def hang_up(self) -> None:
        """Ask for a reload."""
        self.process.send_signal(signal.SIGHUP)

    def stops(self) -> None:
        """End it in order, without a traceback and without a process left."""
        family = [child.pid for child in self.supervisor.children(recursive=True)]
        self.process.terminate()
        assert self.process.wait(20) == 0
        wait_for(lambda: not any(psutil.pid_exists(pid) for pid in family), "nothing is left", 1.0)
        assert "Traceback" not in self.said()


@contextmanager
def running(  # noqa: PLR0913 - by name
    folder: Path,
    mode: str = "serve",
    *,
    version: str = "v1",
    ready: bool = True,
    before: Sequence[str] = (),
    stdin: int = subprocess.DEVNULL,
    **settings: str,
) -> Iterator[Running]:
    """Run the stand-in until the body ends, ready at its beginning; nothing of it is left afterwards.

    `before` is a command that becomes the one behind it, like nohup; `stdin` may be a terminal.
    """
    port = free_ports()
    own = {"BIND": f"{HOST}:{port}", "DATA_DIR": str(folder / "data"), "LOG_FORMAT": "json", "WORKERS": str(WORKERS)}
    variables = environment(own | settings) | {"STAND_IN_FOLDER": str(folder)}
    folder.joinpath("version").write_text(version, encoding="utf-8")
    command = [*before, sys.executable, str(PROGRAM), mode]
    with launched(command, variables, folder / "output", stdin) as process:
        service = Running(port, process, folder)
        if ready:
            service.says("Vestibule runs on")
        yield service


class Asker:
    """A strict client: it sends its next request unless it was told `Connection: close`, and never repeats one."""

    def __init__(self, port: int, *, kept: bool = True) -> None:
        self._connection = http.client.HTTPConnection(HOST, port, timeout=10)
        self._kept = kept

    def __call__(self) -> str:
        """Return the answer, a worker's pid and its version, or the name of what went wrong."""
        try:
            self._connection.request("GET", "/")
            body = self._connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return type(error).__name__
        if not self._kept:
            self._connection.close()
        return body


def failures(seen: Sequence[str]) -> list[str]:
    """Return what was no answer."""
    return [one for one in seen if not ANSWER.fullmatch(one)]
