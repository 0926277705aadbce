"""Running services for the browser, and the people who keep them busy meanwhile."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING

from tests.e2e import world
from tests.e2e.instance import HOST, running
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


@dataclass
class Place(world.Place):
    """A service with its mails, and with a mail server unless it catches them itself."""

    mail_server: SmtpServer | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{HOST}:{self.instance.port}"

    def address(self) -> str:
        """Return an address that it has not heard of."""
        return self.person().email

    def mail(self, address: str, number: int = 1) -> ReceivedMail:
        """Return the so-manieth mail to an address once it has arrived."""
        return self.post.wait(address, number)

    def sign_up(self, *, activate: bool = True) -> None:
        """Let somebody register and, if wished, activate with the code of the mail."""
        person = self.person().registered()
        if activate:
            assert person.activate(person.mail().code).outcome == "200"

    def visit(self, number: int) -> None:
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
        """Let one client register two people more than it may, and have one mail refused for good."""
        assert self.mail_server is not None
        greedy, people = self.client(), [self.person() for _ in range(7)]
        statuses = [greedy.register(person.email, person.password).status for person in people]
        assert statuses == [201] * 5 + [429] * 2
        for person in people[:5]:
            person.mail()  # on their way they would hear what is meant for the next one
        refused = self.person()
        self.mail_server.know_nobody(refused.email)
        refused.registered()
        wait_for(lambda: refused.state() == "undeliverable", "the mail that nobody wants is given up")


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
