"""Errors are where secrets get into logs: break what can break, and search the logs and the stores afterwards."""

from __future__ import annotations

import re
import signal
from functools import partial
from typing import TYPE_CHECKING

from tests.e2e.at_once import at_once
from tests.e2e.instance import Instance, running
from tests.e2e.post import Post, ServerMails
from tests.e2e.stores import found_in
from tests.e2e.world import ROOMY, Person, Place, wrong_code
from tests.servers.processes import send
from tests.servers.smtp import SmtpServer
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def replaced(instance: Instance, role: str, fallen: int) -> bool:
    """Return whether another process has taken the fallen server's place."""
    return instance.child(role) not in {0, fallen}


def use(person: Person, code: str) -> None:
    """Make every call; whatever is heard is held to the form of answers, which is all that matters here."""
    client = person.client
    calls: list[Callable[[], object]] = [
        partial(client.register, f"again.{person.email}", person.password),
        partial(person.activate, code),
        person.resend,
        person.me,
        partial(client.me, person.email, "no one's password"),
    ]
    at_once(calls * 2)


def test_broken_servers_bring_no_secret_into_the_logs(tmp_path: Path) -> None:
    """A mail server that repeats addresses and codes in its refusals, a killed Redis and a killed Postgres: nothing."""
    with SmtpServer() as mail_server, running(tmp_path, "trio", {**ROOMY, "MAIL_URL": mail_server.url}) as instance:
        place = Place(instance, Post(ServerMails(mail_server), instance.ledger))
        person = place.person().registered()
        code = person.code()
        for reply in ("451 4.2.0 <{}> later", "550 5.1.1 <{}> has no mailbox here"):
            other = place.person()
            mail_server.answer(reply.format(other.email), at="RCPT")
            other.registered()
        for role in ("postgres", "redis"):
            fallen = instance.child(role)
            send(fallen, signal.SIGKILL)
            use(person, wrong_code(code))
            wait_for(partial(replaced, instance, role, fallen), f"{role} is back")
            wait_for(instance.ready, "the service is ready again")
        use(person, code)
        wait_for(lambda: '"mail dead"' in instance.said(), "the refused mail is given up")
        assert {"mail deferred", "mail dead"} <= set(re.findall(r"mail (?:deferred|dead)", instance.said()))
        assert found_in(instance, instance.ledger) == []
