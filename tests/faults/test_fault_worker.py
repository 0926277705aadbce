from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.clients import new
from tests.faults.outage import site, told
from tests.faults.under_test import patience, wait_for
from tests.servers.signals import send

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.clients import Answer
    from tests.faults.outage import Site

KEY_SECONDS = 5.0  # a repeat waits for 3 s at most until the key of a killed worker is free, then for its hash
CLAIMED = "SELECT claim FROM idempotency_keys WHERE registration_id IS NULL"
MADE = "SELECT split_part(email_key, '@', 1), count(m.id) FROM users u JOIN mails m ON m.user_id = u.id GROUP BY 1"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give a service whose hashes last long enough to be killed in the middle of one."""
    with site(tmp_path_factory.mktemp("w"), BCRYPT_COST="13") as one:
        yield one


def kill_in_the_middle(service: Site, name: str) -> None:
    """Send a registration with a key, and kill the API workers as soon as the key is claimed by it."""
    before = service.postgres.query(CLAIMED)
    sent = threading.Thread(target=service.clients.register, args=[name], kwargs={"Idempotency_Key": name})
    sent.start()
    wait_for(lambda: service.postgres.query(CLAIMED) not in ([], before), "the key is claimed", 10.0)
    for pid in set(service.workers()) - set(service.mail_workers()):
        send(pid, signal.SIGKILL)
    sent.join()
    assert dict(service.postgres.query(MADE)).get(name) is None, "it was killed too late"


def repeated(service: Site, name: str) -> Answer:
    """Repeat as clients are told to until the registration stands."""
    while (answer := service.clients.register(name, Idempotency_Key=name)).status != 201:
        assert answer.status in {0, 503} or answer.error == "RequestInProgress", answer
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
