"""A whole service whose servers a test can hurt: `vestibule up` on servers of its own, each behind a proxy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.faults.clients import Clients, new
from tests.servers.ports import free_ports
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Proxy
from tests.servers.smtp import SmtpServer
from tests.servers.valkey import ValkeyServer
from tests.servers.waiting import patience, titled, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.faults.clients import Answer

CODE = re.compile(r"^(\d{6})$", re.MULTILINE)
STEADY = 16  # registrations in a row that show that every worker is well: each takes one now and then
SETTINGS = {
    "BCRYPT_COST": "4",
    "ALLOW_WEAK_HASH": "1",
    "WORKERS": "2",
    "RESEND_COOLDOWN_SECONDS": "0",
    "LOG_LEVEL": "INFO",
}


@dataclass
class Site:
    """The service, its servers and the proxies before them."""

    clients: Clients
    process: subprocess.Popen[bytes]
    output: Path
    postgres: PostgresServer
    redis: ValkeyServer
    smtp: SmtpServer
    database: Proxy
    cache: Proxy
    post: Proxy

    def said(self) -> str:
        """Return what the service has printed so far."""
        return self.output.read_text(encoding="utf-8")

    def workers(self) -> list[int]:
        """Return the pids of the API workers and mail workers."""
        return sorted([*titled(self.process.pid, "api worker"), *self.mail_workers()])

    def mail_workers(self) -> list[int]:
        """Return the pids of the mail workers."""
        return titled(self.process.pid, "mail worker")

    def codes(self, name: str) -> list[str]:
        """Return the codes that were mailed to NAME, in the order of their coming."""
        to = f"{name}@example.com"
        return [CODE.findall(mail.text)[0] for mail in list(self.smtp.mails) if to in mail.recipients]

    def mailed(self, name: str, number: int = 1, promised: float = 5.0) -> tuple[str, float]:
        """Wait for a mail to NAME; return its code and the seconds that it took."""
        seconds = wait_for(lambda: len(self.codes(name)) >= number, f"mail {number} to {name}", promised)
        return self.codes(name)[-1], seconds

    def signs_up(self, promised: float = 5.0) -> float:
        """Register, read the mail, activate; return the seconds that it took, with no answer out of place."""
        name, began = new(), time.monotonic()
        answer = self.clients.register(name)
        assert answer.status == 201, answer
        code, _ = self.mailed(name, promised=promised)
        answer = self.clients.activate(name, code)
        assert answer.status == 200, answer
        return time.monotonic() - began

    def recovers(self, promised: float) -> float:
        """Return the seconds until the last registration that failed, on any worker; none may after `promised`."""
        began, failed, good = time.monotonic(), 0.0, 0
        while good < STEADY:
            answer = self.clients.register(new())
            good = good + 1 if answer.status == 201 else 0
            if good == 0:
                failed = time.monotonic() - began
                assert failed < patience(promised), answer
        assert self.clients.ready()
        return failed


def told(**figures: object) -> None:
    """Print what was measured, for the table in docs/operations.md (`pytest -rP` shows it)."""
    shown = {name: f"{value:.2f}" if isinstance(value, float) else value for name, value in figures.items()}
    sys.stdout.write("measured " + " ".join(f"{name}={value}" for name, value in shown.items()) + "\n")


def passes(seconds: float) -> None:
    """Let time pass."""
    threading.Event().wait(seconds)


def at_once(number: int, work: Callable[[], Answer]) -> list[Answer]:
    """Return the answers of so many calls at the same time."""
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(work())) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@contextmanager
def load(work: Callable[[], Answer], clients: int = 2, pause: float = 0.02) -> Iterator[list[Answer]]:
    """Ask all the time while the body runs; the list has every answer."""
    answers: list[Answer] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(pause):
            answers.append(work())

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def site(folder: Path, **settings: str) -> Iterator[Site]:
    """Run the service on servers of its own, ready at the beginning of the body; nothing is left afterwards."""
    with ExitStack() as stack:
        enter = stack.enter_context
        postgres = enter(PostgresServer(_short(folder, "pg"), {"synchronous_commit": "on"}))
        redis = enter(ValkeyServer(_short(folder, "rd")))
        smtp = enter(SmtpServer())
        database, cache, post = (
            enter(Proxy(postgres.socket)),
            enter(Proxy(redis.socket)),
            enter(Proxy(smtp.port)),
        )
        port, output = free_ports(1), folder / "output"
        own = (
            SETTINGS
            | settings
            | {
                "BIND": f"127.0.0.1:{port}",
                "DATA_DIR": str(folder / "data"),
                "DATABASE_URL": f"postgresql://vestibule@127.0.0.1:{database.port}/vestibule",
                "REDIS_URL": f"redis://127.0.0.1:{cache.port}/0",
                "MAIL_URL": f"smtp://127.0.0.1:{post.port}",
            }
        )
        process = enter(running_up(own, output))
        clients = Clients(port)
        one = Site(clients, process, output, postgres, redis, smtp, database, cache, post)
        wait_for(lambda: "runs on" in one.said() or process.poll() is not None, "it starts", 30.0)
        assert process.poll() is None, one.said()
        yield one


@contextmanager
def running_up(settings: dict[str, str], output: Path, before: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Run `vestibule up` with these settings alone; kill what is left of it afterwards. `before` becomes it."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
    environment = plain | {f"VESTIBULE_{name}": value for name, value in settings.items()}
    program = [*before, sys.executable, str(Path(sys.executable).with_name("vestibule")), "up"]
    with output.open("wb") as sink:
        process = subprocess.Popen(program, env=environment, stdout=sink, stderr=sink, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(patience(15))
            except subprocess.TimeoutExpired:
                for one in psutil.Process(process.pid).children(recursive=True):
                    one.kill()
                process.kill()
                process.wait(10)


def _short(folder: Path, name: str) -> Path:
    made = folder / name
    made.mkdir()
    return made
