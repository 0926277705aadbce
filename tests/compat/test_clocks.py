"""Machines whose clock is wrong: limits, codes and tokens hold by the clocks of the database and of Redis.

PostgreSQL, Valkey and the mail server have the right time; `faketime` gives the service another one.
"""

from __future__ import annotations

import http.client
import json
import time
from base64 import b64encode
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.instance import HOST, running
from tests.e2e.ledger import Ledger
from tests.e2e.post import Post, ServerMails
from tests.e2e.world import wrong_code
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

PASSWORD = "correct horse battery"
HOUR = 3600
TTL_SECONDS = 10  # a slow machine must get through some requests meanwhile
LIMIT = 5
NEAR_SECONDS = 10  # what a slow machine may take between an event and our look at a clock


class Machine:
    """A service on a machine of its own, whose clock a file sets."""

    def __init__(self, instance: Instance, clock: Path, offset: int) -> None:
        self._port = instance.port
        self._clock = clock
        self._offset = offset

    def move_clock(self, seconds: int) -> None:
        """Move the machine's clock, which is wrong already, by so many seconds."""
        self._offset += seconds
        self._clock.write_text(f"{self._offset:+d}s\n", encoding="ascii")

    def call(self, method: str, path: str, body: object = None, email: str = "") -> tuple[int, dict[str, Any], Any]:
        """Ask for `path`, as `email` if it is given; return the status, the JSON and the headers."""
        connection = http.client.HTTPConnection(HOST, self._port, timeout=30)
        headers = {"Content-Type": "application/json"}
        if email:
            headers["Authorization"] = "Basic " + b64encode(f"{email}:{PASSWORD}".encode()).decode()
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        found = json.loads(answer.read())
        connection.close()
        return answer.status, found, answer.headers

    def register(self) -> tuple[str, int, dict[str, Any], Any]:
        """Register somebody new."""
        email = f"ada.{token_hex(6)}@example.test"
        return email, *self.call("POST", "/api/v1/users/register", {"email": email, "password": PASSWORD})

    def progress(self, email: str) -> dict[str, Any]:
        """Return where the registration stands."""
        return self.call("GET", "/api/v1/users/activation", email=email)[1]

    def activate(self, email: str, code: str) -> tuple[int, dict[str, Any], Any]:
        """Redeem a code."""
        return self.call("POST", "/api/v1/users/activate", {"code": code}, email)


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
    email, status, account, _ = machine.register()
    assert status == HTTPStatus.CREATED, account
    created = datetime.fromisoformat(account["created_at"])
    assert abs(time.time() - created.timestamp()) < NEAR_SECONDS
    code = mailbox.wait(email).code
    wait_for(lambda: machine.progress(email)["state"] == "accepted", "the mail is known to be accepted")
    assert 0 < machine.progress(email)["code_expires_in"] <= TTL_SECONDS
    assert machine.call("GET", account["status_url"])[0] == HTTPStatus.OK
    assert machine.activate(email, wrong_code(code))[1]["attempts_left"] == 4
    wait_for(lambda: machine.progress(email)["state"] == "expired", "the code has expired", TTL_SECONDS + 1.0)
    assert machine.activate(email, code)[0] == HTTPStatus.GONE
    assert machine.call("POST", "/api/v1/users/resend", {}, email)[0] == HTTPStatus.ACCEPTED
    machine.move_clock(forward)
    assert machine.activate(email, mailbox.wait(email, 2).code)[0] == HTTPStatus.OK
    assert machine.call("GET", "/api/v1/users/me", email=email)[0] == HTTPStatus.OK


@pytest.mark.parametrize(("offset", "forward"), [(HOUR, 0), (-HOUR, 0), (0, HOUR), (0, -HOUR)])
def test_a_wrong_clock_changes_nothing(
    tmp_path: Path, settings: dict[str, str], mailbox: Post, offset: int, forward: int
) -> None:
    """An hour off, or moved by an hour between two requests: codes, tokens and limits are the same."""
    with machine(tmp_path / "one", settings, offset) as one:
        shows(one, mailbox, forward)
        statuses = [one.register()[1] for _ in range(LIMIT)]
        assert statuses == [HTTPStatus.CREATED] * (LIMIT - 1) + [HTTPStatus.TOO_MANY_REQUESTS]
        _, _, refused, headers = one.register()
        assert HOUR - 2 * NEAR_SECONDS < refused["retry_after"] <= HOUR
        assert int(headers["Retry-After"]) == refused["retry_after"]


def test_two_machines_five_seconds_apart_are_one_service(
    tmp_path: Path, settings: dict[str, str], mailbox: Post
) -> None:
    """What one machine began the other goes on with; limits and metrics are exact over both."""
    with machine(tmp_path / "one", settings, 0) as one, machine(tmp_path / "two", settings, 5) as two:
        email, status, _, _ = one.register()
        assert status == HTTPStatus.CREATED
        assert two.activate(email, mailbox.wait(email).code)[0] == HTTPStatus.OK
        statuses = [each.register()[1] for _ in range(LIMIT) for each in (two, one)]
        assert statuses.count(HTTPStatus.CREATED) == LIMIT - 1
        expected = (LIMIT, 1, 2 * LIMIT + 1, 2 * LIMIT + 1)
        wait_for(lambda: counted(one) == counted(two) == expected, "the metrics of both are exact", 2.0)


def counted(machine: Machine) -> tuple[int, int, int, int]:
    """Return the registrations, the activations, the register calls and how many of those the window has."""
    metrics = machine.call("GET", "/api/v1/metrics")[1]
    business, route = metrics["business_metrics"], "POST /api/v1/users/register"
    return (
        business["registrations"],
        business["activations"],
        metrics["request_counts"][route],
        metrics["latencies"][route]["count"],
    )
