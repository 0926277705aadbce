"""The whole walk through the API and the mail worker, as a person and an operator take it."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.e2e.instance import COMMAND, environment
from tests.faults.clients import Clients, new
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.faults.clients import Answer
    from tests.servers.smtp import SmtpServer

PROGRAM = COMMAND[:2]
CODE = re.compile(r"^(\d{6})$", re.MULTILINE)
PASSWORD = "pässwörd 例え"  # no single-byte encoding has
USERS = "/api/v1/users"
MAIL_SECONDS = 10.0
COMMAND_SECONDS = 60.0
COUNTED = {"registrations": 3, "activations": 2, "resends": 1, "mails_accepted": 4, "mails_dead": 1}


def command(settings: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `vestibule`, to its end."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )


@dataclass
class Person:
    """Somebody who signs up, with an address and a password that no single-byte encoding can hold."""

    clients: Clients
    smtp: SmtpServer
    local: str
    status_url: str = ""

    @property
    def email(self) -> str:
        """The address as the person types it."""
        return f"{self.local}@Bücher.example"

    def register(self) -> None:
        """Register; the answer tells of an account that waits."""
        answer = self.clients.ask("POST", f"{USERS}/register", {"email": self.email, "password": PASSWORD})
        assert answer.status == 201, answer
        assert (answer.body["email"], answer.body["is_activated"]) == (self.email, False)
        assert answer.body["created_at"].endswith("Z"), answer
        self.status_url = answer.body["status_url"]

    def call(self, method: str, path: str, body: object = None) -> Answer:
        """Ask with address and password."""
        token = base64.b64encode(f"{self.email}:{PASSWORD}".encode()).decode()
        return self.clients.ask(method, f"{USERS}/{path}", body, Authorization=f"Basic {token}")

    def code(self, number: int = 1) -> str:
        """Wait for so many mails and return the code of the last one."""
        wait_for(lambda: len(self._codes()) >= number, f"mail {number} to {self.local}", MAIL_SECONDS)
        return self._codes()[-1]

    def _codes(self) -> list[str]:
        mine = [mail for mail in list(self.smtp.mails) if mail.recipients[0].startswith(self.local)]
        return [CODE.findall(mail.text)[0] for mail in mine]

    def activate(self, code: str) -> Answer:
        """Type a code."""
        return self.call("POST", "activate", {"code": code})

    def activates(self, code: str) -> None:
        """Type a code that is right."""
        answer = self.activate(code)
        assert (answer.status, answer.body["is_activated"]) == (200, True), answer
        me = self.call("GET", "me")
        assert (me.status, me.body["is_activated"], me.body["email"]) == (200, True, self.email)

    def state(self) -> str:
        """Return where the registration stands."""
        return str(self.clients.ask("GET", self.status_url).body.get("state", ""))


def walk(port: int, settings: Mapping[str, str], smtp: SmtpServer) -> None:
    """Sign up, mistype a code, ask for another one, be limited, lose a mail and have it replayed; all is counted."""
    clients = Clients(port)
    before = counts(clients)
    one, two, three = (Person(clients, smtp, f"o'{new()}+tag") for _ in range(3))
    one.register()
    right = one.code()
    wrong = f"{(int(right) + 1) % 1_000_000:06}"
    refused = one.activate(wrong)
    assert (refused.status, refused.error, refused.body["attempts_left"]) == (400, "InvalidActivationCode", 4), refused
    one.activates(right)
    again = clients.ask("POST", f"{USERS}/register", {"email": one.email.upper(), "password": PASSWORD})
    assert again.status == 409, again

    two.register()
    first = two.code()
    assert two.call("POST", "resend").status == 202
    second = two.code(2)
    assert second != first
    statuses = [two.activate(first).status for _ in range(4)]
    assert statuses == [400, 400, 400, 429], f"three tries a minute: {statuses}"

    smtp.answer("550 5.1.1 no such user", at="RCPT")
    three.register()
    wait_for(lambda: three.state() == "undeliverable", "the mail is dead", MAIL_SECONDS)
    replayed(settings)
    three.activates(three.code())
    expected = {name: before[name] + more for name, more in COUNTED.items()}
    wait_for(lambda: counts(clients) == expected, f"the metrics count {COUNTED}", 5.0)
    health = clients.ask("GET", "/api/v1/health")
    assert clients.ready(), health


def replayed(settings: Mapping[str, str]) -> None:
    """See that the operator's commands show the one dead mail and queue it again."""
    listed = command(settings, "mail", "list", "--state", "dead", "--json")
    assert listed.returncode == 0, listed.stderr
    assert [one["reason"][:3] for one in json.loads(listed.stdout)] == ["550"], listed.stdout
    replay = command(settings, "mail", "replay", "--dead")
    assert (replay.returncode, replay.stdout) == (0, "queued 1 mail again\n"), replay.stderr


def counts(clients: Clients) -> dict[str, Any]:
    """Return the business counters."""
    answer = clients.ask("GET", "/api/v1/metrics")
    assert answer.status == 200, answer
    return dict(answer.body["business_metrics"])
