from __future__ import annotations

import base64
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import datetime
from math import ceil
from typing import TYPE_CHECKING, Any, Final, Self

import psutil
import psycopg
import pytest
import redis

from actors.domain.code import Keyring
from service.embedded.data_dir import kept_keys
from service.embedded.postgres import EmbeddedPostgres
from service.embedded.redis import EmbeddedRedis
from tests.e2e.instance import COMMAND, Instance, running
from tests.servers.processes import send
from tests.servers.waiting import child, patience, titled, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WORKERS: Final = 8
CLIENTS: Final = 6
PASSWORD: Final = "correct horse battery"
SETTINGS: Final = {
    "WORKERS": str(WORKERS),
    "RESEND_COOLDOWN_SECONDS": "0",
    **{f"{name}_LIMIT": "off" for name in ("REGISTER", "ACTIVATE", "PASSWORD", "PASSWORD_CLIENT", "BASIC")},
    "CODE_LIMITS": "off",
}
# Postgres' own count of what happened, which no purge takes back.
WITNESS: Final = """
CREATE TABLE public.witnessed (what text NOT NULL);
CREATE FUNCTION public.witness() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.witnessed VALUES (TG_ARGV[0]); RETURN NULL; END $$;
CREATE TRIGGER w1 AFTER INSERT ON vestibule.accounts FOR EACH ROW EXECUTE FUNCTION public.witness('registrations');
CREATE TRIGGER w2 AFTER UPDATE ON vestibule.accounts FOR EACH ROW WHEN (OLD.registration <> NEW.registration)
    EXECUTE FUNCTION public.witness('registrations');
CREATE TRIGGER w3 AFTER UPDATE ON vestibule.accounts FOR EACH ROW
    WHEN (OLD.activated_at IS NULL AND NEW.activated_at IS NOT NULL)
    EXECUTE FUNCTION public.witness('activations');
CREATE TRIGGER w4 AFTER INSERT ON vestibule.mails FOR EACH ROW EXECUTE FUNCTION public.witness('mails');
CREATE TRIGGER w5 AFTER UPDATE ON vestibule.mails FOR EACH ROW WHEN (OLD.state <> 'accepted' AND NEW.state = 'accepted')
    EXECUTE FUNCTION public.witness('mails_accepted');
"""
CODE: Final = """
SELECT a.id, m.id, m.key_id FROM vestibule.accounts a JOIN vestibule.mails m ON m.account_id = a.id
WHERE a.email_key = %s AND a.activated_at IS NULL ORDER BY m.number DESC LIMIT 1
"""
PURGE: Final = "DELETE FROM vestibule.accounts WHERE created_at < now() - interval '2 s' OR activated_at IS NOT NULL"
LIVEZ, REGISTER = "GET /livez", "POST /api/v1/users/register"
ACTIVATE, RESEND = "POST /api/v1/users/activate", "POST /api/v1/users/resend"
FLUSHED_SECONDS: Final = 1.0  # a killed worker takes no more than this with it
UNLOGGED_SECONDS: Final = 0.1  # and so much of its log: of that time nobody knows whose answers they were


Kill = tuple[float, str]


class Load:
    """Clients that register, activate, resend and look, and what each of them was answered and when."""

    def __init__(self, instance: Instance) -> None:
        self._port = instance.port
        self._url = EmbeddedPostgres(instance.data_dir).url
        self._keyring = Keyring(kept_keys(instance.data_dir), 6)
        self._guard, self._stop = threading.Lock(), threading.Event()
        self._accounts: list[str] = []
        self.answers: list[tuple[float, str, int]] = []
        self.unanswered: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> Self:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, once every answer is there."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def count(self, route: str) -> int:
        """Return how often the route was answered."""
        return sum(1 for _, name, _ in self.answers if name == route)

    def someone(self) -> str:
        """Return the address of an account that was registered."""
        with self._guard:
            return random.choice(self._accounts)  # noqa: S311 - any

    def _client(self, number: int) -> None:
        dice, step = random.Random(number), 0  # noqa: S311 - the same wishes in every run
        deeds = (self._livez, self._livez, self._livez, self._register, self._activate, self._resend)
        with psycopg.connect(self._url, autocommit=True) as database:
            while not self._stop.wait(0.01):
                step += 1
                deeds[dice.randrange(len(deeds)) if self._accounts else 3](f"user{number}-{step}@example.com", database)

    def _livez(self, _fresh: str, _database: psycopg.Connection) -> None:
        self._ask(LIVEZ)

    def _register(self, fresh: str, _database: psycopg.Connection) -> None:
        if self._ask(REGISTER, {"email": fresh, "password": PASSWORD}) == 201:
            with self._guard:
                self._accounts.append(fresh)

    def _activate(self, _fresh: str, database: psycopg.Connection) -> None:
        email = self.someone()
        row = database.execute(CODE, (email,)).fetchone()
        if row:
            self._ask(ACTIVATE, {"code": self._keyring.code(*row)}, email)

    def _resend(self, _fresh: str, _database: psycopg.Connection) -> None:
        self._ask(RESEND, None, self.someone())

    def _ask(self, route: str, body: dict[str, str] | None = None, email: str = "") -> int:
        method, _, path = route.partition(" ")
        basic = base64.b64encode(f"{email}:{PASSWORD}".encode()).decode()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Basic {basic}"} if email else {})}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            self.unanswered[route] += 1
            return 0
        finally:
            connection.close()
        self.answers.append((time.time(), route, answer.status))
        return answer.status


def metrics(instance: Instance) -> dict[str, Any]:
    """Return the metrics, from whichever worker."""
    connection = http.client.HTTPConnection("127.0.0.1", instance.port, timeout=20)
    try:
        connection.request("GET", "/api/v1/metrics")
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found
    finally:
        connection.close()


def witnessed(instance: Instance) -> dict[str, int]:
    """Return the business counters as Postgres' triggers have seen them."""
    with psycopg.connect(EmbeddedPostgres(instance.data_dir).url) as database:
        seen: Counter[str] = Counter(
            dict(database.execute("SELECT what, count(*) FROM witnessed GROUP BY what").fetchall())
        )
    made = {name: seen[name] for name in ("registrations", "activations", "mails_accepted")}
    return {**made, "resends": seen["mails"] - seen["registrations"], "mails_dead": 0}


def torment(instance: Instance, load: Load) -> list[Kill]:
    """Kill, stall, wipe and purge while the load runs; return who was killed and when."""
    dice, pause, kills = random.Random(), threading.Event(), []  # noqa: S311 - another run, another moment

    def kill() -> None:
        victim = dice.choice(titled(instance.process.pid, "api worker"))
        kills.append((time.time(), names(instance)[victim]))
        send(victim, signal.SIGKILL)

    def wipe() -> None:
        with redis.Redis.from_url(EmbeddedRedis(instance.data_dir).url) as server:
            server.flushall()

    def purge() -> None:
        with psycopg.connect(EmbeddedPostgres(instance.data_dir).url, autocommit=True) as database:
            assert database.execute(PURGE).rowcount > 0
        plain = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
        folder = {"VESTIBULE_DATA_DIR": str(instance.data_dir)}
        deletion = [*COMMAND[:-1], "user", "delete", load.someone()]
        subprocess.run(deletion, env=plain | folder, check=False, capture_output=True, timeout=30)

    valkey = psutil.Process(child(instance.process.pid, "redis"))
    deeds: tuple[Callable[[], None], ...] = (
        kill, kill, valkey.suspend, kill, valkey.resume, wipe, kill, purge, kill, wipe
    )  # fmt: skip
    try:
        for deed in deeds:
            pause.wait(dice.uniform(1.0, 2.5))
            deed()
    finally:
        valkey.resume()
    pause.wait(2)
    return kills


def names(instance: Instance) -> dict[int, str]:
    """Return the workers' names by pid, as the master has told them."""
    return {entry["pid"]: entry["child"] for entry in entries(instance) if entry["message"] == "started"}


def entries(instance: Instance) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of the log."""
    for line in instance.said().splitlines():
        if line.startswith("{") and line.endswith("}"):
            yield json.loads(line)


def raw_samples(instance: Instance) -> dict[str, list[float]]:
    """Return the milliseconds of each answered request by route, in order, as the log has them."""
    samples: dict[str, list[float]] = {}
    for entry in entries(instance):
        if entry["message"] == "request" and entry["status"] is not None:
            samples.setdefault(entry["route"], []).append(entry["ms"])
    return {route: sorted(found) for route, found in samples.items()}


def between(samples: list[float], share: float, lost: int) -> tuple[float, float]:
    """Return the least and the most that this percentile can be, 1 % off, when `lost` samples may be missing."""
    rank, last = ceil(share * len(samples)) - 1, len(samples) - 1
    return samples[max(0, rank - lost)] * 0.99 - 0.02, samples[min(last, rank + lost)] * 1.01 + 0.02


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["uvloop"])
def test_eight_workers_count_exactly_through_kills_an_outage_a_wipe_and_a_purge(data_dir: Path, loop: str) -> None:
    """Business counters are Postgres' truth, requests those of the clients but for the killed workers' last second.

    Percentiles are within 1 % of the raw samples. The table of what was measured is printed.
    """
    with running(data_dir, loop, SETTINGS) as instance:
        with psycopg.connect(EmbeddedPostgres(instance.data_dir).url, autocommit=True) as database:
            database.execute(WITNESS)
        with Load(instance) as load:
            kills = torment(instance, load)
        wait_for(lambda: metrics(instance)["mail"]["queued"] == 0, "all mails have left", 30)
        wait_for(lambda: metrics(instance)["business_metrics"] == witnessed(instance), "business is exact", 2)
        wait_for(lambda: not any(off for *_, off in requests(instance, load, kills)), "requests are exact", 2)
        table = requests(instance, load, kills)
        found = metrics(instance)
        sys.stdout.write("\n".join(report(found, witnessed(instance), table, load, kills)) + "\n")
        for route, samples in raw_samples(instance).items():
            seen = found["latencies"].get(route)
            if seen is None or route not in {LIVEZ, REGISTER, ACTIVATE, RESEND}:
                continue
            lost = abs(len(samples) - seen["count"])
            for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
                least, most = between(samples, share, lost)
                assert least <= seen[name] <= most, (route, name, lost)


def requests(instance: Instance, load: Load, kills: list[Kill]) -> list[tuple[str, int, int, int, bool]]:
    """Return for each route: answers, counted, the most that may be missing, and whether the counter is off."""
    counted, late_by_route = metrics(instance)["request_counts"], unflushed(instance, load, kills)
    rows = []
    for route in (LIVEZ, REGISTER, ACTIVATE, RESEND):
        answers = load.count(route)
        late = late_by_route[route]
        off = not answers - late <= counted.get(route, 0) <= answers + load.unanswered[route]
        rows.append((route, answers, counted.get(route, 0), late, off))
    return rows


def unflushed(instance: Instance, load: Load, kills: list[Kill]) -> Counter[str]:
    """Return by route what the killed workers had answered in their last second."""
    span = min(2.0, patience(FLUSHED_SECONDS))  # a tick comes late on a machine with too much to do
    late = Counter(name for at, name, _ in load.answers if any(k - UNLOGGED_SECONDS <= at <= k for k, _ in kills))
    for entry in entries(instance):
        at = datetime.fromisoformat(entry["time"]).timestamp()
        if entry["message"] == "request" and any(
            k - span <= at <= k - UNLOGGED_SECONDS and entry["worker"] == worker for k, worker in kills
        ):
            late[entry["route"]] += 1
    return late


def report(
    found: dict[str, Any],
    truth: dict[str, int],
    table: list[tuple[str, int, int, int, bool]],
    load: Load,
    kills: list[Kill],
) -> Iterator[str]:
    """Yield the lines of the table."""
    statuses = Counter(status for _, _, status in load.answers)
    yield f"{WORKERS} workers, {len(kills)} killed, statuses {dict(statuses)}, unanswered {load.unanswered.total()}"
    yield f"{'business':32}{'metrics':>9}{'Postgres':>10}"
    yield from (f"{name:32}{found['business_metrics'][name]:9}{number:10}" for name, number in truth.items())
    yield f"{'requests':32}{'metrics':>9}{'clients':>10}{'last second of the killed':>27}"
    yield from (f"{route:32}{counted:9}{answers:10}{late:27}" for route, answers, counted, late, _ in table)
