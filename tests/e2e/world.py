"""An instance and the people who come to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from secrets import token_hex
from typing import Self

from tests.e2e.client import Answer, Client
from tests.e2e.instance import Instance
from tests.e2e.post import Post, ReceivedMail
from tests.servers.waiting import wait_for

OPS_TOKEN = "operators-" + token_hex(12)
OFF = ("REGISTER_LIMIT", "ACTIVATE_LIMIT", "PASSWORD_LIMIT", "PASSWORD_CLIENT_LIMIT", "BASIC_LIMIT")
# Long codes, so that none of them stands in a log or a table by chance.
ROOMY = {**dict.fromkeys((*OFF, "CODE_LIMITS"), "off"), "RESEND_COOLDOWN_SECONDS": "0", "CODE_DIGITS": "10"}
STRICT = {"CODE_TTL_SECONDS": "4", "RESEND_COOLDOWN_SECONDS": "3", "OPS_TOKEN": OPS_TOKEN}
STATE_SECONDS = 15.0


@dataclass
class Place:
    """An instance, the mails it sends, and addresses that no client of it has had yet."""

    instance: Instance
    post: Post
    numbers: count[int] = field(default_factory=lambda: count(1))

    def client(self) -> Client:
        """Return a client machine that the instance has never heard of."""
        number = next(self.numbers)
        return Client(self.instance, f"127.{1 + number // 62500}.{number // 250 % 250}.{1 + number % 250}")

    def person(self) -> Person:
        """Return a person whom the instance has never heard of."""
        return Person(self, self.client(), f"ada.{token_hex(6)}@example.test", f"correct horse {token_hex(8)}")


@dataclass
class Person:
    """Somebody with an address, a password and a machine."""

    place: Place
    client: Client
    email: str
    password: str
    status_url: str = ""

    def register(self, *, locale: str | None = None, **headers: str) -> Answer:
        """Send the form."""
        answer = self.client.register(self.email, self.password, locale=locale, **headers)
        if answer.status == 201:
            self.status_url = answer.json()["status_url"]
        return answer

    def mail(self, number: int = 1) -> ReceivedMail:
        """Return the so-manieth mail to this person once it has arrived."""
        return self.place.post.wait(self.email, number)

    def code(self, number: int = 1) -> str:
        """Return the so-manieth code of this person once the service knows that its mail was accepted."""
        code = self.mail(number).code
        wait_for(lambda: self.state() not in {"queued", "sending"}, "the mail is known to be accepted", STATE_SECONDS)
        return code

    def activate(self, code: object) -> Answer:
        """Redeem a code."""
        return self.client.activate(self.email, self.password, code)

    def resend(self) -> Answer:
        """Ask for another code."""
        return self.client.resend(self.email, self.password)

    def me(self) -> Answer:
        """Read the account."""
        return self.client.me(self.email, self.password)

    def state(self) -> str:
        """Read the state by the status address."""
        return str(self.client.get(self.status_url).json()["state"])

    def registered(self) -> Self:
        """Register, and be sure of it."""
        answer = self.register()
        assert answer.outcome == "201"
        return self

    def exhausted(self) -> Self:
        """Register and use up all attempts."""
        wrong = wrong_code(self.registered().code())
        outcomes = [self.activate(wrong).outcome for _ in range(5)]
        assert outcomes == ["400 InvalidActivationCode"] * 5
        return self

    def another_password(self) -> Person:
        """Return the same person with another password."""
        return Person(self.place, self.client, self.email, f"battery staple {token_hex(8)}", self.status_url)


def wrong_code(code: str) -> str:
    """Return another code of the same length."""
    return str((int(code) + 1) % 10 ** len(code)).zfill(len(code))
