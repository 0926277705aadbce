from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest
import redis

from tests.faults.clients import new
from tests.faults.outage import site, told
from tests.servers.processes import send
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.clients import Answer
    from tests.faults.outage import Site

KEY_SECONDS = 5.0  # a repeat waits for nobody: a new worker and its hash
MADE = """
SELECT split_part(email_key, \'@\', 1), count(m.id)
FROM vestibule.accounts a JOIN vestibule.mails m ON m.account_id = a.id GROUP BY 1
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give a service whose hashes last long enough to be killed in the middle of one."""
    with site(tmp_path_factory.mktemp("w"), BCRYPT_COST="13") as one:
        yield one


def kill_in_the_middle(service: Site, name: str) -> None:
    """Send a registration with a key, and kill the API workers once it has been admitted and is being hashed."""
    before = admitted(service)
    sent = threading.Thread(target=service.clients.register, args=[name], kwargs={"Idempotency_Key": name})
    sent.start()
    wait_for(lambda: admitted(service) > before, "it is admitted", 10.0)
    for pid in set(service.workers()) - set(service.mail_workers()):
        send(pid, signal.SIGKILL)
    sent.join()
    assert dict(service.postgres.query(MADE)).get(name) is None, "it was killed too late"


def admitted(service: Site) -> int:
    """Return how many windows of limits hold a use: each client here has an address of its own."""
    with redis.Redis.from_url(service.redis.url) as client:
        return sum(1 for _ in client.scan_iter("vestibule:limit:*"))


def repeated(service: Site, name: str) -> Answer:
    """Repeat as clients are told to until the registration stands."""
    while (answer := service.clients.register(name, Idempotency_Key=name)).status != 201:
        assert answer.status in {0, 503}, answer
        threading.Event().wait(float(answer.headers.get("retry-after", 0.1)))
    return answer


@pytest.mark.parametrize("kills", [1, 2])
def test_killed_in_the_middle(service: Site, kills: int) -> None:
    """Kill -9 of all API workers, once or again: a repeat has the registration seconds later, one account, one mail."""
    name = new()
    for _ in range(kills):
        kill_in_the_middle(service, name)
    began = time.monotonic()
    answer = repeated(service, name)
    seconds = time.monotonic() - began
    assert seconds < patience(KEY_SECONDS)
    assert repeated(service, name).body == answer.body
    assert dict(service.postgres.query(MADE))[name] == 1
    assert service.clients.activate(name, service.mailed(name)[0]).status == 200
    told(fault="API worker killed mid-registration", kills=kills, registered_after=seconds)
