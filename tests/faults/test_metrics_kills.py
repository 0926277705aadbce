from __future__ import annotations

import random
import signal
from typing import TYPE_CHECKING, Any

import psycopg
import redis

from service.embedded.postgres import EmbeddedPostgres
from service.embedded.redis import EmbeddedRedis
from tests.e2e.instance import running
from tests.faults.clients import Clients, new
from tests.servers.processes import send
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.instance import Instance

ROUTE = "GET /livez"
WRITTEN = f"SELECT sum((totals ->> 'requests|{ROUTE}|200')::numeric) FROM vestibule.metrics_workers"  # noqa: S608 - a constant


class Counted:
    """A service whose clients count what they ask for, to compare it with its metrics."""

    def __init__(self, instance: Instance, asked: int = 0) -> None:
        self.asked = asked
        self._clients = Clients(instance.port)
        self._data_dir = instance.data_dir

    def ask(self, times: int) -> None:
        """Ask for the counted route, each time over a new connection, which the workers share."""
        for _ in range(times):
            assert self._clients.ask("GET", "/livez").status == 200
            self.asked += 1

    def metrics(self) -> dict[str, Any]:
        """Return the metrics, from whichever worker."""
        return self._clients.ask("GET", "/api/v1/metrics").body

    def exact(self) -> bool:
        """Return whether the count, and the number of latencies in the window, are what was asked for."""
        metrics = self.metrics()
        latencies = metrics["latencies"].get(ROUTE, {"count": 0})["count"]
        return bool(metrics["request_counts"].get(ROUTE, 0) == latencies == self.asked)

    def written(self) -> bool:
        """Return whether the workers have written all of it: the last second, which a kill may take, is over."""
        with psycopg.connect(EmbeddedPostgres(self._data_dir).url) as connection:
            return connection.execute(WRITTEN).fetchone() == (self.asked,)

    def register_and_purge(self) -> None:
        """Register somebody and delete every account."""
        assert self._clients.register(new()).status == 201
        with psycopg.connect(EmbeddedPostgres(self._data_dir).url) as connection:
            connection.execute("DELETE FROM vestibule.accounts")


def test_metrics_are_exact_through_kills_wipes_outages_and_a_restart(tmp_path: Path) -> None:
    """Counts and latencies are what was asked within 2 s; no kill, wipe, purge or restart takes any of it back."""
    with running(tmp_path, "uvloop", {}) as one:
        counted = Counted(one)
        for _ in range(2):
            counted.ask(50)
            wait_for(counted.exact, "the metrics are exact", 2.0)
            wait_for(counted.written, "all of it is a tick old", 2.0)
            send(random.choice(one.titled("api worker")), signal.SIGKILL)  # noqa: S311 - any
            with redis.Redis.from_url(EmbeddedRedis(one.data_dir).url) as server:
                server.flushall()
            wait_for(counted.exact, "nothing is taken back, in the first reading that is not shared", 2.0)
            wait_for(lambda: len(one.titled("api worker")) == 2 and one.ready(), "the worker is back", 5.0)
        counted.register_and_purge()
        send(one.child("redis"), signal.SIGSTOP)
        counted.ask(50)
        wait_for(counted.exact, "the metrics are exact without Redis", 4.0)
        assert counted.metrics()["notes"]
        send(one.child("redis"), signal.SIGCONT)
        wait_for(lambda: counted.metrics()["workers"] == 2, "the killed are not alive any more", 5.0)
    with running(tmp_path, "uvloop", {}) as one:
        after = Counted(one, counted.asked)
        assert after.exact()
        assert after.metrics()["business_metrics"]["registrations"] == 1
