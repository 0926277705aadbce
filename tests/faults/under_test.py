"""Starts the stand-in service as its own program, looks at its processes, and puts load on it."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.servers.processes import kill
from tests.servers.waiting import titled, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROGRAM = Path(__file__).with_name("stand_in.py")
STARTED = re.compile(r'"started".*"child": ?"api-\d+", ?"pid": ?(\d+)')


@dataclass
class Running:
    """A running stand-in: its address, its supervisor, its output."""

    port: int
    process: subprocess.Popen[bytes]
    output: Path
    version: Path

    @property
    def folder(self) -> Path:
        """Where the stand-in looks for a test's wishes."""
        return self.version.parent

    @property
    def supervisor(self) -> psutil.Process:
        """The supervisor's process."""
        return psutil.Process(self.process.pid)

    def workers(self) -> list[int]:
        """Return the pids of the API workers that were ready and still run, by their generation's own word."""
        told = {int(pid) for pid in STARTED.findall(self.said())}
        return sorted(told & set(titled(self.process.pid, "api worker")))

    def titled(self, title: str) -> list[int]:
        """Return the pids of the processes whose title begins so."""
        return titled(self.process.pid, title)

    def said(self) -> str:
        """Return what the service has printed so far."""
        return self.output.read_text(encoding="utf-8")

    def get(self, path: str = "/", timeout: float = 10.0) -> tuple[int, str]:
        """Ask once over a new connection; return status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def asked(self, told: int = 0) -> int:
        """Wait for a request for something slow, in what was said after so many characters; return its worker."""
        wait_for(lambda: "\nslow " in self.said()[told:], "it is under way")
        return int(self.said()[told:].partition("\nslow ")[2].split()[0])

    def hang_up(self) -> None:
        """Ask for a reload."""
        os.kill(self.process.pid, signal.SIGHUP)


@contextmanager
def running(  # noqa: PLR0913 - by name
    folder: Path,
    port: int,
    mode: str = "serve",
    *,
    loop: str = "uvloop",
    ready: bool = True,
    before: Sequence[str] = (),
    stdin: int = subprocess.DEVNULL,
    **settings: str,
) -> Iterator[Running]:
    """Run the stand-in until the body ends, ready at its beginning; nothing of it is left afterwards.

    `before` is a command that becomes the one behind it, like nohup; `stdin` may be a terminal.
    """
    version, output = folder / "version", folder / "output"
    if not version.exists():
        version.write_text("v1", encoding="utf-8")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")},
        "STAND_IN_FOLDER": str(folder),
        "VESTIBULE_BIND": f"127.0.0.1:{port}",
        "VESTIBULE_DATA_DIR": str(folder / "data"),
        "VESTIBULE_LOG_FORMAT": "json",
        "VESTIBULE_WORKERS": "2",
        "VESTIBULE_LOOP": loop,
        **settings,
    }
    environment = {name: value for name, value in environment.items() if value}
    command = [*before, sys.executable, str(PROGRAM), mode]
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command, env=environment, stdin=stdin, stdout=sink, stderr=sink, start_new_session=True
        )
    service = Running(port, process, output, version)
    try:
        if ready:
            wait_for(lambda: "Vestibule runs on" in service.said(), "the service is ready")
        yield service
    finally:
        kill(process)


@dataclass
class Load:
    """What a load has seen: how many answers, by whom, and every failure."""

    answers: int = 0
    bodies: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)


@contextmanager
def load(port: int, clients: int = 4, pause: float = 0.005, *, kept: bool = True) -> Iterator[Load]:
    """Ask all the time while the body runs, over kept-alive connections or, not `kept`, over a new one each time.

    The client is a strict one: it sends its next request unless it was told `Connection: close`, and never repeats.
    """
    seen, stop, guard = Load(), threading.Event(), threading.Lock()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        while not stop.wait(pause):
            try:
                connection.request("GET", "/")
                answer = connection.getresponse()
                body = answer.read().decode()
                if not kept:
                    connection.close()
                with guard:
                    seen.answers += 1
                    seen.bodies.add(body)
                    if answer.status != 200:
                        seen.failures.append(str(answer.status))
            except (OSError, http.client.HTTPException) as error:
                with guard:
                    seen.failures.append(type(error).__name__)
                connection.close()
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()
