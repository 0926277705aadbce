"""Running services for the browser, and the people who keep them busy meanwhile."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import count
from secrets import token_hex
from typing import TYPE_CHECKING

from tests.e2e.client import Client
from tests.e2e.instance import HOST, Instance, running
from tests.e2e.post import CaughtMails, Post, ReceivedMail, ServerMails
from tests.servers.smtp import SmtpServer
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = "operators-token-" + token_hex(8)
COOLDOWN_SECONDS = 3
# The browser has one address for all tests, so its registrations must not be counted.
OPEN = {"REGISTER_LIMIT": "off", "BASIC_LIMIT": "off", "RESEND_COOLDOWN_SECONDS": str(COOLDOWN_SECONDS)}
GUARDED = {"OPS_TOKEN": TOKEN, "TRUSTED_PROXIES": f"{HOST}/32"}
NOBODY = "550 5.1.1 no such mailbox"


@dataclass
class Place:
    """A service with its mails."""

    instance: Instance
    post: Post
    numbers: count[int] = field(default_factory=lambda: count(1))
    mail_server: SmtpServer | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{HOST}:{self.instance.port}"

    def address(self) -> str:
        """Return an address that it has not heard of."""
        return f"ada.{token_hex(4)}@example.test"

    def mail(self, address: str, number: int = 1) -> ReceivedMail:
        """Return the so-manieth mail to an address once it has arrived."""
        return self.post.wait(address, number)

    def client(self) -> Client:
        """Return a client machine that it has not heard of."""
        number = next(self.numbers)
        return Client(self.instance, f"127.9.{number // 250}.{1 + number % 250}")

    def sign_up(self, *, activate: bool = True) -> None:
        """Let somebody register and, if wished, activate with the code of the mail."""
        address, password, client = self.address(), f"correct horse {token_hex(6)}", self.client()
        assert client.register(address, password).outcome == "201"
        if activate:
            assert client.activate(address, password, self.mail(address).code).outcome == "200"

    def person(self, number: int) -> None:
        """Let somebody come: most activate, some mistype, some look around, some are nobody we know."""
        self.sign_up(activate=number % 4 != 0)
        client = self.client()
        client.get("/livez")
        if number % 2 == 0:
            client.register(self.address(), "short")
        if number % 3 == 0:
            client.activate(self.address(), "correct horse battery", "123456")
            client.get("/api/v1/health")

    def bad_day(self) -> None:
        """Let one client register too often and, with a mail server of the tests, one address be nobody's."""
        greedy, addresses = self.client(), [self.address() for _ in range(7)]
        answers = [greedy.register(address, f"correct horse {token_hex(6)}").status for address in addresses]
        for address, status in zip(addresses, answers, strict=True):
            if status == HTTPStatus.CREATED:
                self.mail(address)  # on their way they would hear what is meant for the next one
        if self.mail_server is not None:
            assert answers[-1] == HTTPStatus.TOO_MANY_REQUESTS
            self.mail_server.answer(NOBODY, at="RCPT")
            dead = self.dead_mails()
            self.sign_up(activate=False)
            wait_for(lambda: self.dead_mails() > dead, "the mail that nobody wants is given up")

    def dead_mails(self) -> int:
        """Return how many mails were given up."""
        answer = self.client().get("/api/v1/metrics", Authorization=f"Bearer {TOKEN}")
        return int(answer.json()["business_metrics"]["mails_dead"])


@contextmanager
def open_place(folder: Path, loop: str = "uvloop") -> Iterator[Place]:
    """Run a service as on a developer's machine: with the mail catcher, without an operators' token."""
    with running(folder, loop, OPEN) as instance:
        yield Place(instance, Post(CaughtMails(instance.data_dir / "mails"), instance.ledger))


@contextmanager
def guarded_place(folder: Path, loop: str = "uvloop") -> Iterator[Place]:
    """Run a service with an operators' token and a mail server."""
    with SmtpServer() as server, running(folder, loop, {**GUARDED, "MAIL_URL": server.url}) as instance:
        yield Place(instance, Post(ServerMails(server), instance.ledger), mail_server=server)
