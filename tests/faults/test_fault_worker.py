from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import redis

from tests.faults.clients import new
from tests.faults.outage import site, told
from tests.servers.processes import send
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.outage import Site

KEY_SECONDS = 5.0  # a repeat waits for nobody: a new worker and its hash


def kill_in_the_middle(service: Site, name: str) -> None:
    """Send a registration with a key, and kill the API workers once it has been admitted and is being hashed."""
    before = admitted(service)
    sent = threading.Thread(target=service.clients.register, args=[name], kwargs={"Idempotency_Key": name})
    sent.start()
    wait_for(lambda: admitted(service) > before, "it is admitted", 10.0)
    for pid in service.instance.titled("api worker"):
        send(pid, signal.SIGKILL)
    sent.join()
    assert not service.mails_made(name), "it was killed too late"


def admitted(service: Site) -> int:
    """Return how many windows of limits hold a use: each client here has an address of its own."""
    with redis.Redis.from_url(service.redis.url) as client:
        return sum(1 for _ in client.scan_iter("vestibule:limit:*"))


def stands(service: Site, name: str) -> bool:
    """Repeat the registration and return whether it stands; every other answer is one to repeat."""
    answer = service.clients.register(name, Idempotency_Key=name)
    assert answer.status in {0, 201, 503}, answer
    return answer.status == 201


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """Kill -9 of all API workers, once and again: a repeat registers seconds later: one account, one mail."""
    with site(tmp_path, "uvloop", BCRYPT_COST="13") as service:  # hashes that last long enough to be killed in one
        for kills in (1, 2):
            name = new()
            for _ in range(kills):
                kill_in_the_middle(service, name)
            seconds = wait_for(lambda: stands(service, name), "the registration stands", KEY_SECONDS)  # noqa: B023 - asked here
            assert service.mails_made(name) == 1
            assert service.clients.activate(name, service.mailed(name)[0]).status == 200
            told(fault="API worker killed mid-registration", kills=kills, registered_after=seconds)
