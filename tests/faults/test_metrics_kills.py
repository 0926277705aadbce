from __future__ import annotations

import http.client
import json
import random
import signal
from typing import TYPE_CHECKING, Any

import psycopg
import redis

from service.embedded.postgres import EmbeddedPostgres
from service.embedded.redis import EmbeddedRedis
from tests.e2e.instance import running
from tests.servers.processes import send
from tests.servers.waiting import child, titled, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.instance import Instance

ROUTE = "GET /livez"
WRITTEN = "SELECT sum((totals ->> %(name)s)::numeric) FROM vestibule.metrics_workers"


class Client:
    """Asks the service over new connections, which its workers share, and counts."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.asked = 0

    def get(self, path: str) -> bytes:
        """Ask once."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200
            return answer.read()
        finally:
            connection.close()

    def ask(self, times: int) -> None:
        """Ask the counted route."""
        for _ in range(times):
            self.get("/livez")
            self.asked += 1

    def metrics(self) -> dict[str, Any]:
        """Return the metrics, from whichever worker."""
        found: dict[str, Any] = json.loads(self.get("/api/v1/metrics"))
        return found

    def counted(self) -> tuple[int, int]:
        """Return how often the route was asked, and how many of its latencies are in the window."""
        metrics = self.metrics()
        return metrics["request_counts"].get(ROUTE, 0), metrics["latencies"].get(ROUTE, {"count": 0})["count"]

    def exact(self) -> bool:
        """Whether the metrics are what was asked."""
        return self.counted() == (self.asked, self.asked)


def test_metrics_are_exact_through_kills_wipes_outages_and_a_restart(tmp_path: Path) -> None:
    """Counts and latencies equal what was asked within 2 s, and no wipe, kill or restart takes any of it back."""
    with running(tmp_path, "uvloop", {}) as one:
        client = Client(one.port)
        for _ in range(3):
            client.ask(50)
            wait_for(client.exact, "the metrics are exact", 2.0)
            wait_for(lambda: written(one.data_dir) == client.asked, "all of it is a tick old", 2.0)
            send(random.choice(titled(one.process.pid, "api worker")), signal.SIGKILL)  # noqa: S311 - any
            wipe(one.data_dir)
            wait_for(client.exact, "nothing is taken back, in the first reading that is not shared", 2.0)
            wait_for(lambda: len(titled(one.process.pid, "api worker")) == 2 and one.ready(), "the worker is back", 5.0)
        stall_redis(one, client)
        wait_for(lambda: client.metrics()["workers"] == 2, "the killed are not alive any more", 5.0)
    with running(tmp_path, "uvloop", {}) as one:
        after = Client(one.port)
        assert after.counted() == (client.asked, client.asked)


def written(data_dir: Path) -> int:
    """Return how many requests of the route the workers have written so far: the promise's last second is over then."""
    with psycopg.connect(EmbeddedPostgres(data_dir).url) as connection:
        row = connection.execute(WRITTEN, {"name": f"requests|{ROUTE}|200"}).fetchone()
    return int(row[0]) if row and row[0] else 0


def stall_redis(one: Instance, client: Client) -> None:
    """Stop Redis in its tracks: counters stay exact, and the metrics say that it is away."""
    pid = child(one.process.pid, "redis")
    send(pid, signal.SIGSTOP)
    try:
        client.ask(50)
        wait_for(client.exact, "the metrics are exact without Redis", 4.0)
        assert client.metrics()["notes"]
    finally:
        send(pid, signal.SIGCONT)


def wipe(data_dir: Path) -> None:
    """FLUSHALL."""
    with redis.Redis.from_url(EmbeddedRedis(data_dir).url) as server:
        server.flushall()
