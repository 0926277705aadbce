"""A whole service whose servers a test can hurt: `vestibule up` on servers of its own, each behind a proxy."""

from __future__ import annotations

import re
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from tests.e2e.instance import HOST, Instance, running
from tests.faults.clients import Clients, new
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Proxy
from tests.servers.smtp import SmtpServer
from tests.servers.valkey import ValkeyServer
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.faults.clients import Answer

CODE = re.compile(r"^(\d{6})$", re.MULTILINE)
STEADY = 16  # registrations in a row that show that every worker is well: each takes one now and then
SETTINGS = {"MAIL_WORKERS": "2", "RESEND_COOLDOWN_SECONDS": "0", "BASIC_LIMIT": "off"}
MAILS = """
SELECT split_part(email_key, '@', 1), count(m.id)
FROM vestibule.accounts a JOIN vestibule.mails m ON m.account_id = a.id GROUP BY 1
"""
SeenT = TypeVar("SeenT")


@dataclass
class Site:
    """The service, its servers and the proxies before them."""

    instance: Instance
    clients: Clients
    postgres: PostgresServer
    redis: ValkeyServer
    smtp: SmtpServer
    database: Proxy
    cache: Proxy
    post: Proxy

    @contextmanager
    def hurt(self, server: str, fault: str) -> Iterator[None]:
        """Let `postgres` or `redis` fail for the body."""
        program: PostgresServer | ValkeyServer = self.postgres if server == "postgres" else self.redis
        network = self.database if server == "postgres" else self.cache
        faults: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "killed": (program.kill, program.start),
            "stopped": (program.stall, program.resume),
            "refusing": (network.refuse, network.accept),
            "half_open": (network.hold, partial(network.flow, forget=True)),
        }
        begin, end = faults[fault]
        begin()
        try:
            yield
        finally:
            end()

    @contextmanager
    def slow(self, network: Proxy, seconds: float) -> Iterator[None]:
        """Let every packet be late, in each direction, for the body."""
        network.delay = seconds
        try:
            yield
        finally:
            network.heal()

    def workers(self) -> list[int]:
        """Return the pids of the API workers and mail workers."""
        return [*self.instance.titled("api worker"), *self.instance.titled("mail worker")]

    def mails_made(self, name: str) -> int:
        """Return how many mails were ever owed to NAME's account, 0 without an account."""
        return int(dict(self.postgres.query(MAILS)).get(name, 0))

    def registered(self, number: int = 1) -> list[str]:
        """Return the names of so many people who have just registered."""
        names = [new() for _ in range(number)]
        for name in names:
            answer = self.clients.register(name)
            assert answer.status == 201, answer
        return names

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
        began = time.monotonic()
        [name] = self.registered()
        answer = self.clients.activate(name, self.mailed(name, promised=promised)[0])
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


@contextmanager
def site(folder: Path, loop: str, **settings: str) -> Iterator[Site]:
    """Run the service on servers of its own, ready at the beginning of the body; nothing is left afterwards."""
    with ExitStack() as stack:
        enter = stack.enter_context
        for name in ("pg", "rd"):
            (folder / name).mkdir()
        postgres = enter(PostgresServer(folder / "pg", {"synchronous_commit": "on"}))
        redis = enter(ValkeyServer(folder / "rd"))
        smtp = enter(SmtpServer())
        database, cache, post = (enter(Proxy(target)) for target in (postgres.socket, redis.socket, smtp.port))
        urls = {
            "DATABASE_URL": f"postgresql://vestibule@{HOST}:{database.port}/vestibule",
            "REDIS_URL": f"redis://{HOST}:{cache.port}/0",
            "MAIL_URL": f"smtp://{HOST}:{post.port}",
        }
        instance = enter(running(folder, loop, SETTINGS | urls | settings))
        yield Site(instance, Clients(instance.port), postgres, redis, smtp, database, cache, post)


def told(**figures: object) -> None:
    """Print what was measured, for the table in docs/operations.md (`pytest -rP` shows it)."""
    shown = {name: f"{value:.2f}" if isinstance(value, float) else value for name, value in figures.items()}
    sys.stdout.write("measured " + " ".join(f"{name}={value}" for name, value in shown.items()) + "\n")


@contextmanager
def load(askers: Sequence[Callable[[], SeenT]], pause: float = 0.02) -> Iterator[list[SeenT]]:
    """Ask all the time while the body runs, each asker from a thread of its own; the list has what they return."""
    seen: list[SeenT] = []
    stop = threading.Event()

    def work(ask: Callable[[], SeenT]) -> None:
        while not stop.wait(pause):
            seen.append(ask())

    threads = [threading.Thread(target=work, args=[ask]) for ask in askers]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def slowest(answers: Sequence[Answer]) -> float:
    """Return the seconds of the slowest answer."""
    return max(answer.seconds for answer in answers)
