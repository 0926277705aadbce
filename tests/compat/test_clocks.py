"""Machines whose clock is wrong: limits, codes and tokens hold by the clocks of the database and of Redis.

PostgreSQL, Valkey and the mail server have the right time; `faketime` gives the service another one.
"""

from __future__ import annotations

import time
from base64 import b64encode
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.instance import HOST, running
from tests.e2e.ledger import Ledger
from tests.e2e.post import Post, ServerMails
from tests.e2e.world import wrong_code
from tests.faults.clients import Clients, new
from tests.servers.postgres import PostgresServer
from tests.servers.smtp import SmtpServer
from tests.servers.valkey import ValkeyServer
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.instance import Instance

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (on Debian: apt-get install faketime)"),
]

HOUR = 3600
TTL_SECONDS = 10  # a slow machine must get through some requests meanwhile
LIMIT = 5
NEAR_SECONDS = 10  # what a slow machine may take between an event and our look at a clock


class Machine:
    """A service on a machine of its own, whose clock a file sets."""

    def __init__(self, instance: Instance, clock: Path, offset: int) -> None:
        self.clients = Clients(instance.port, address=HOST)
        self._clock = clock
        self._offset = offset

    def move_clock(self, seconds: int) -> None:
        """Move the machine's clock, which is wrong already, by so many seconds."""
        self._offset += seconds
        self._clock.write_text(f"{self._offset:+d}s\n", encoding="ascii")


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    """Run a mail server."""
    with SmtpServer() as server:
        yield server


@pytest.fixture
def mailbox(smtp: SmtpServer) -> Post:
    """Read what it was sent."""
    return Post(ServerMails(smtp), Ledger())


@pytest.fixture
def settings(tmp_path: Path, smtp: SmtpServer) -> Iterator[dict[str, str]]:
    """Run stores whose clock is right; return what names them, and short times."""
    folders = [tmp_path / name for name in ("pg", "rd")]
    for folder in folders:
        folder.mkdir()
    with PostgresServer(folders[0]) as postgres, ValkeyServer(folders[1]) as redis:
        yield {
            "DATABASE_URL": postgres.url,
            "REDIS_URL": redis.url,
            "MAIL_URL": smtp.url,
            "CODE_KEYS": "k1:" + b64encode(bytes(32)).decode(),
            "CODE_TTL_SECONDS": str(TTL_SECONDS),
            "RESEND_COOLDOWN_SECONDS": "1",
            "BASIC_LIMIT": "off",
            "REGISTER_LIMIT": f"{LIMIT}/hour",
        }


@contextmanager
def machine(folder: Path, settings: dict[str, str], offset: int) -> Iterator[Machine]:
    """Run the service on a machine whose clock is wrong by so many seconds."""
    folder.mkdir()
    clock = folder / "clock"
    environment = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    clock.write_text(f"{offset:+d}s\n", encoding="ascii")
    with running(folder, "uvloop", settings, environment) as instance:
        yield Machine(instance, clock, offset)


def shows(machine: Machine, mailbox: Post, forward: int = 0) -> None:
    """Sign somebody up with a wrong code, a dead one and a good one; the clock moves by `forward` meanwhile."""
    clients, name = machine.clients, new()
    registered = clients.register(name)
    assert registered.status == HTTPStatus.CREATED, registered
    created = datetime.fromisoformat(registered.body["created_at"])
    assert abs(time.time() - created.timestamp()) < NEAR_SECONDS
    code = mailbox.wait(address(name)).code
    wait_for(lambda: clients.activation(name).body["state"] == "accepted", "the mail is known to be accepted")
    assert 0 < clients.activation(name).body["code_expires_in"] <= TTL_SECONDS
    assert clients.ask("GET", registered.body["status_url"]).status == HTTPStatus.OK
    assert clients.activate(name, wrong_code(code)).body["attempts_left"] == 4
    expired = TTL_SECONDS + 1.0
    wait_for(lambda: clients.activation(name).body["state"] == "expired", "the code has expired", expired)
    assert clients.activate(name, code).status == HTTPStatus.GONE
    assert clients.resend(name).status == HTTPStatus.ACCEPTED
    machine.move_clock(forward)
    assert clients.activate(name, mailbox.wait(address(name), 2).code).status == HTTPStatus.OK
    assert clients.me(name).status == HTTPStatus.OK


@pytest.mark.parametrize(("offset", "forward"), [(HOUR, 0), (-HOUR, 0), (0, HOUR), (0, -HOUR)])
def test_a_wrong_clock_changes_nothing(
    tmp_path: Path, settings: dict[str, str], mailbox: Post, offset: int, forward: int
) -> None:
    """An hour off, or moved by an hour between two requests: codes, tokens and limits are the same."""
    with machine(tmp_path / "one", settings, offset) as one:
        shows(one, mailbox, forward)
        statuses = [one.clients.register(new()).status for _ in range(LIMIT)]
        assert statuses == [HTTPStatus.CREATED] * (LIMIT - 1) + [HTTPStatus.TOO_MANY_REQUESTS]
        refused = one.clients.register(new())
        assert HOUR - 2 * NEAR_SECONDS < refused.body["retry_after"] <= HOUR
        assert int(refused.headers["retry-after"]) == refused.body["retry_after"]


def test_two_machines_five_seconds_apart_are_one_service(
    tmp_path: Path, settings: dict[str, str], mailbox: Post
) -> None:
    """What one machine began the other goes on with; limits and metrics are exact over both."""
    with machine(tmp_path / "one", settings, 0) as one, machine(tmp_path / "two", settings, 5) as two:
        name = new()
        assert one.clients.register(name).status == HTTPStatus.CREATED
        assert two.clients.activate(name, mailbox.wait(address(name)).code).status == HTTPStatus.OK
        statuses = [each.clients.register(new()).status for _ in range(LIMIT) for each in (two, one)]
        assert statuses.count(HTTPStatus.CREATED) == LIMIT - 1
        expected = (LIMIT, 1, 2 * LIMIT + 1, 2 * LIMIT + 1)
        wait_for(lambda: counted(one) == counted(two) == expected, "the metrics of both are exact", 2.0)


def counted(machine: Machine) -> tuple[int, int, int, int]:
    """Return the registrations, the activations, the register calls and how many of those the window has."""
    metrics = machine.clients.ask("GET", "/api/v1/metrics").body
    business, route = metrics["business_metrics"], "POST /api/v1/users/register"
    return (
        business["registrations"],
        business["activations"],
        metrics["request_counts"][route],
        metrics["latencies"][route]["count"],
    )


def address(name: str) -> str:
    """Return where somebody's mail goes."""
    return f"{name}@example.com"
