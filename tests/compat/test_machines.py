"""Two API machines and a mail machine behind HAProxy: what is promised of one holds for all of them together."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest

from tests.compat.walk import PROGRAM
from tests.compat.web_proxies import program
from tests.e2e.at_once import at_once
from tests.e2e.instance import HOST, QUICK, STOP_SECONDS, environment, launched
from tests.e2e.ledger import Ledger
from tests.e2e.post import Post, ServerMails
from tests.faults.clients import Answer, Clients, new
from tests.servers.ports import free_ports
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.servers.smtp import SmtpServer
    from tests.servers.valkey import ValkeyServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        program("haproxy") is None, reason="HAProxy is not installed (on Debian: apt-get install haproxy)"
    ),
]

LIMIT = 5
PEOPLE = 40
AT_ONCE = 16
HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 30s
frontend sign-up
    bind 127.0.0.1:{front}
    http-request set-header Forwarded for=%[src]
    default_backend machines
backend machines
    balance roundrobin
    option httpchk GET /readyz
    option redispatch
    retry-on conn-failure
    server one 127.0.0.1:{one} check inter 200ms
    server two 127.0.0.1:{two} check inter 200ms
"""


@dataclass(frozen=True, slots=True)
class Machines:
    """The machines: what clients reach, each API machine by itself, and the mails."""

    front: Clients
    each: tuple[Clients, Clients]
    processes: dict[str, subprocess.Popen[bytes]]
    mailbox: Post

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics as each API machine that lives has them."""
        return [answer.body for machine in self.each if (answer := machine.ask("GET", "/api/v1/metrics")).status]


@pytest.fixture
def machines(tmp_path: Path, database: str, valkey_server: ValkeyServer, smtp: SmtpServer) -> Iterator[Machines]:
    """Run them on one database, one Valkey and one mail server."""
    valkey_server.empty()
    settings = QUICK | {
        "DATABASE_URL": database,
        "REDIS_URL": valkey_server.url,
        "MAIL_URL": smtp.url,
        "CODE_KEYS": "k1:" + b64encode(bytes(32)).decode(),
        "TRUSTED_PROXIES": "127.0.0.1/32",
        "REGISTER_LIMIT": f"{LIMIT}/hour",
    }
    front = free_ports(3)
    (tmp_path / "haproxy.cfg").write_text(HAPROXY.format(front=front, one=front + 1, two=front + 2), encoding="utf-8")
    commands = {
        "one": [*PROGRAM, "serve"],
        "two": [*PROGRAM, "serve"],
        "mail": [*PROGRAM, "worker"],
        "haproxy": [program("haproxy") or "haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")],
    }
    binds = {"one": front + 1, "two": front + 2}
    with ExitStack() as stack:
        processes = {}
        for name, command in commands.items():
            own = {"DATA_DIR": str(tmp_path / name), "BIND": f"{HOST}:{binds.get(name, 0)}"}
            processes[name] = stack.enter_context(
                launched(command, environment(settings | own), tmp_path / f"{name}.log")
            )
        each = Clients(front + 1), Clients(front + 2)
        both = Clients(front)
        wait_for(lambda: all(one.ready() for one in (*each, both)), "they are ready", 30.0)
        yield Machines(both, each, processes, Post(ServerMails(smtp), Ledger()))
        for name in ("haproxy", "one", "two", "mail"):
            processes[name].terminate()
        assert {processes[name].wait(STOP_SECONDS) for name in ("one", "two", "mail")} <= {0, -9}


def statuses(answers: Sequence[Answer]) -> Counter[int]:
    """Return how often each status came."""
    return Counter(answer.status for answer in answers)


def test_limits_codes_and_metrics_are_exact_across_machines(machines: Machines) -> None:
    """One window over both, one mail each, one activation of sixteen, and the same sums wherever one asks."""
    front = machines.front
    people = [new() for _ in range(PEOPLE)]
    assert statuses(at_once([partial(front.register, name) for name in people])) == {201: PEOPLE}
    one_client = Clients(front.port, address="127.250.1.1")
    flood = at_once([lambda: one_client.register(new()) for _ in range(4 * LIMIT)])
    assert statuses(flood) == {201: LIMIT, 429: 3 * LIMIT}
    codes = {name: machines.mailbox.wait(f"{name}@example.com").code for name in people}
    racing = people[0]
    race = at_once([lambda: front.activate(racing, codes[racing]) for _ in range(AT_ONCE)])
    assert statuses(race)[200] == 1
    rest = at_once([partial(front.activate, name, codes[name]) for name in people[1:]])
    assert statuses(rest) == {200: PEOPLE - 1}
    expected = {"registrations": PEOPLE + LIMIT, "activations": PEOPLE, "mails_accepted": PEOPLE + LIMIT}
    requests = {"POST /api/v1/users/register": PEOPLE + 4 * LIMIT, "POST /api/v1/users/activate": PEOPLE + AT_ONCE - 1}

    def exact() -> bool:
        return all(
            expected.items() <= one["business_metrics"].items() and requests.items() <= one["request_counts"].items()
            for one in machines.metrics()
        )

    wait_for(exact, "both machines have the same sums")
    assert len(machines.mailbox.to(f"{racing}@example.com")) == 1


def test_a_machine_that_dies_takes_nobody_with_it(machines: Machines) -> None:
    """People repeat what was not answered, under their key, on the machine that is left: one account, one mail each."""

    def registers(name: str, number: int) -> Answer:
        if number == PEOPLE // 2:
            machines.processes["one"].kill()
        for _ in range(50):
            answer = machines.front.register(name, Idempotency_Key=name)
            if answer.status == HTTPStatus.CREATED:
                return answer
        return answer

    people = [new() for _ in range(PEOPLE)]
    calls = [partial(registers, name, number) for number, name in enumerate(people)]
    assert statuses(at_once(calls)) == {201: PEOPLE}
    for name in people:
        machines.mailbox.wait(f"{name}@example.com")
        assert len(machines.mailbox.to(f"{name}@example.com")) == 1
    [left] = machines.metrics()
    assert left["business_metrics"]["registrations"] == PEOPLE
