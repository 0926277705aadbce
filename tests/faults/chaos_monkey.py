"""Kills processes of a running `vestibule up`, and its mail server, in a seeded order and at seeded times."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import psutil

from tests.servers.processes import send

if TYPE_CHECKING:
    from pathlib import Path

PAUSE = (0.3, 1.2)  # between two kills
DOWN = (0.5, 3.0)  # how long the mail server stays away; the others are started again by the supervisor
SIGNS = {  # how often each is chosen, and how its command line is told
    "api": (4, "vestibule api worker"),
    "mail": (2, "vestibule mail worker"),
    "valkey": (2, "valkey-server"),
    "postgres": (1, "bin/postgres "),
    "backend": (1, "bin/postgres "),  # one of its processes: it ends all connections and recovers
    "smtp": (2, ""),
}


class MailServer:
    """The mail sink as a process, with a port and a file that outlive it."""

    def __init__(self, port: int, file: Path) -> None:
        self.url = f"smtp://127.0.0.1:{port}"
        self._port = port
        self._command = [sys.executable, "-m", "tests.servers.mail_sink", str(port), str(file)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process = subprocess.Popen(self._command)
        pause = threading.Event()
        while not pause.wait(0.02):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            assert self._process.poll() is None, "the mail server does not start"

    def kill(self) -> None:
        """Kill it with -9, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Monkey:
    """Kills around the body; `kills` counts them by kind. The mail server runs at the end."""

    def __init__(self, seed: int, supervisor: int, mail: MailServer) -> None:
        self.kills: Counter[str] = Counter()
        self._chance = random.Random(seed)  # noqa: S311 - to be had again by its seed
        self._supervisor = supervisor
        self._mail = mail
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monkey")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def _run(self) -> None:
        kinds, weights = list(SIGNS), [weight for weight, _ in SIGNS.values()]
        while not self._enough.wait(self._chance.uniform(*PAUSE)):
            kind = self._chance.choices(kinds, weights)[0]
            if kind == "smtp":
                self._mail.kill()
                self._enough.wait(self._chance.uniform(*DOWN))
                self._mail.start()
                self.kills[kind] += 1
            elif self._kill(kind):
                self.kills[kind] += 1

    def _kill(self, kind: str) -> bool:
        """Kill one of a kind, if there is one at this moment."""
        sign = SIGNS[kind][1]
        found = sorted(pid for pid, words in self._running() if sign in words)
        with suppress(psutil.NoSuchProcess):
            if kind == "backend" and found:
                found = sorted(child.pid for child in psutil.Process(found[0]).children())
        if not found:
            return False
        with suppress(ProcessLookupError):
            send(self._chance.choice(found), signal.SIGKILL)
        return True

    def _running(self) -> list[tuple[int, str]]:
        """Return the pid and the command line of each process below the supervisor."""
        found = []
        for process in psutil.Process(self._supervisor).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                found.append((process.pid, " ".join(process.cmdline()) + " "))
        return found
