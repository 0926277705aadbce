"""Measures one running service against what its machine can do, in rounds, everything in one run.

CPU time is given in multiples of a bare Quart route on the same Hypercorn in the same round: they hold from one
machine to the next, and through most of what busy neighbours do. CPU of a process is its whole utime and stime.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path
from time import monotonic, perf_counter, time
from typing import TYPE_CHECKING, Any

import psycopg
from client import Connection, Load, closed_loop, open_loop, probe
from machine import (
    bcrypt_ceiling,
    commits_per_second,
    cpu_seconds,
    password_seconds,
    processes,
    pss_megabytes,
    round_trips_per_second,
)
from redis import Redis
from report import ROLES, Figures, compare, plot, show
from services import HOST, VESTIBULE, bare_route, beside, up

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from client import Answer
    from services import MailSink, Service

    Ask = Callable[[Connection, int], Coroutine[None, None, Answer]]

PASSWORD = "correct horse battery staple"  # noqa: S105 - of accounts that live for a minute
USUAL_CLIENTS = 16
CLIENTS = (1, 4, USUAL_CLIENTS, 64)
MAILS_SECONDS = 120.0
IDLE_CONNECTIONS = 1000
PROBED = ("/livez", "/readyz")
STEADY_RATE = 20.0  # registrations a second, for the time from an answer to its mail
FAST, SLOW = 4, 12  # bcrypt's cost: the least there is, and the default
BUSY_COST = 14  # a second for a hash: a few requests fill the queue


class Bench:
    """One service at one cost, what its mail server took, and the figures of all rounds."""

    def __init__(self, service: Service, sink: MailSink, name: str) -> None:
        self.service = service
        self.sink = sink
        self.name = name
        self.registered = 0
        self.answered: dict[str, float] = {}  # when each registration was answered (CLOCK_MONOTONIC)

    def register(self, service: Service | None = None) -> Ask:
        """Return a call that registers a new address for each number."""
        first, self.registered = self.registered, self.registered + 1_000_000
        name = self.name if service is None else f"{self.name}-{service.port}"

        async def ask(connection: Connection, number: int) -> Answer:
            email = f"{name}-{first + number}@example.org"
            body = json.dumps({"email": email, "password": PASSWORD}).encode()
            answer = await connection.request("POST", "/api/v1/users/register", body)
            self.answered[email] = monotonic()
            return answer

        return ask

    async def activate(self) -> tuple[Ask, int]:
        """Return a call that activates one account for each number, and how many numbers there are."""
        codes = [(email, code) for email, (code, _) in (await self.sink.taken()).items() if email in self.answered]
        self.answered = {}

        async def ask(connection: Connection, number: int) -> Answer:
            email, code = codes[number]
            basic = base64.b64encode(f"{email}:{PASSWORD}".encode()).decode()
            body = json.dumps({"code": code}).encode()
            return await connection.request("POST", "/api/v1/users/activate", body, f"Authorization: Basic {basic}\r\n")

        return ask, len(codes)

    async def mailed(self, count: int) -> None:
        """Return once so many mails are accepted; ends the run when that takes too long."""
        async with asyncio.timeout(MAILS_SECONDS):
            while (await self.service.metrics())["business_metrics"]["mails_accepted"] < count:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)  # between looks at the metrics

    async def accepted(self) -> int:
        """Return how many mails have been accepted."""
        return (await self.service.metrics())["business_metrics"]["mails_accepted"]

    async def measured(self, clients: int, count: int, ask: Ask, *, mails: bool) -> tuple[Load, dict[str, float]]:
        """Return what `clients` saw of `count` requests, and the CPU milliseconds of each, with its mail, by role."""
        accepted = await self.accepted() if mails else 0
        before = cpu_seconds(self.service.pid)
        load = await closed_loop(self.service.connections(clients), count, ask)
        if mails:
            await self.mailed(accepted + count)
        after = cpu_seconds(self.service.pid)
        return load, {role: (after[role] - before.get(role, 0.0)) * 1000 / count for role in ROLES if role in after}


async def bare(service: Service, count: int) -> float:
    """Return the CPU milliseconds of a request to the bare route, by 16 clients."""

    async def post(connection: Connection, _: int) -> Answer:
        return await connection.request("POST", "/nothing", b"{}")

    before = sum(cpu_seconds(service.pid).values())
    await closed_loop(service.connections(USUAL_CLIENTS), count, post)
    return (sum(cpu_seconds(service.pid).values()) - before) * 1000 / count


async def fast_round(bench: Bench, unit: float, scale: float, figures: Figures, loop: str) -> None:
    """Take the multiples of registrations and activations at the least cost."""
    ceiling = await asyncio.to_thread(bcrypt_ceiling, FAST, 0.5)
    hashing = 1000 * ceiling.cpu_seconds

    def note(what: str, load: Load, used: dict[str, float]) -> None:
        used["api"] -= hashing
        figures.note(f"{what}: all", sum(used.values()) / unit)
        for role, milliseconds in used.items():
            figures.note(f"{what}: {role}", milliseconds / unit)
        figures.note(f"{what}: per second", load.rate)
        figures.note(f"{what}: p99 ms", load.percentile(0.99))
        figures.statuses(what, load.statuses)

    for clients in CLIENTS if loop == "uvloop" else (USUAL_CLIENTS,):
        count = int(scale * min(100 * clients + 100, 1000))
        what = f"{loop}, register + mail, {clients}"
        note(what, *await bench.measured(clients, count, bench.register(), mails=True))
        if clients == USUAL_CLIENTS:
            ask, count = await bench.activate()
            note(f"{loop}, activate, {clients}", *await bench.measured(clients, count, ask, mails=False))


async def refused_round(bench: Bench, limited: Service, busy: Service, unit: float, figures: Figures) -> None:
    """Take the multiples of a 429 and of a 503: the API workers' CPU outside their password threads."""
    for what, service, status in (
        ("limited", limited, HTTPStatus.TOO_MANY_REQUESTS),
        ("busy", busy, HTTPStatus.SERVICE_UNAVAILABLE),
    ):
        workers = [pid for pid, role in processes(service.pid).items() if role == "api"]
        ask, statuses = bench.register(service), Counter[int]()
        connections = service.connections(USUAL_CLIENTS)
        filling = [asyncio.create_task(ask(Connection(HOST, service.port), -1 - number)) for number in range(24)]
        await asyncio.sleep(0.5)  # for the queue to fill

        async def client(connection: Connection, numbers: range, ask: Ask = ask, seen: Counter[int] = statuses) -> None:
            for number in numbers:
                seen[(await ask(connection, number)).status] += 1

        before = _outside_passwords(service.pid, workers)
        await asyncio.gather(*(client(one, range(n * 100, n * 100 + 100)) for n, one in enumerate(connections)))
        used = _outside_passwords(service.pid, workers) - before
        await asyncio.gather(*filling)
        figures.note(f"uvloop, {what}, {USUAL_CLIENTS}: api", 1000 * used / statuses[status] / unit)
        figures.statuses(f"uvloop, {what}, {USUAL_CLIENTS}", statuses)


def _outside_passwords(supervisor: int, workers: list[int]) -> float:
    return cpu_seconds(supervisor)["api"] - sum(map(password_seconds, workers))


async def shared_servers(bench: Bench, scale: float, figures: Figures) -> None:
    """Count Redis round trips and PostgreSQL commits of registrations by 32 clients."""
    servers, count = bench.service.servers(), int(1000 * scale)

    def read() -> tuple[int, int]:
        with Redis.from_url(servers["redis_url"]) as client, psycopg.connect(servers["database_url"]) as connection:
            reads = client.info("stats")["total_reads_processed"]
            row = connection.execute("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
            return reads, row.fetchone()[0]  # type: ignore[index]  # there is one

    await asyncio.sleep(1.2)  # PostgreSQL's backends report once a second
    before = await asyncio.to_thread(read)
    accepted = await bench.accepted()
    await closed_loop(bench.service.connections(32), count, bench.register())
    await bench.mailed(accepted + count)
    await asyncio.sleep(1.2)  # as above
    after = await asyncio.to_thread(read)
    figures.note("Redis round trips a registration + mail, 32", (after[0] - before[0]) / count)
    figures.note("PostgreSQL commits a registration + mail, 32", (after[1] - before[1]) / count)


async def mail_times(bench: Bench, scale: float, figures: Figures) -> None:
    """Take the time from an answer to its mail's acceptance at a steady rate, and how fast a backlog drains."""
    bench.answered = {}
    count = int(300 * scale)
    await open_loop(bench.service.connections(8), STEADY_RATE, count, bench.register())
    await asyncio.sleep(1)  # for the last mails
    taken = await bench.sink.taken()
    waits = sorted(1000 * (taken[email][1] - at) for email, at in bench.answered.items() if email in taken)
    figures.note("201 to the mail's 250 at 20/s: p50 ms", waits[len(waits) // 2])
    figures.note("201 to the mail's 250 at 20/s: p99 ms", waits[int(0.99 * len(waits))])
    backlog = int(3000 * scale)
    accepted = await bench.accepted()
    await bench.sink.order("hold")
    await closed_loop(bench.service.connections(64), backlog, bench.register())
    begun = perf_counter()
    await bench.sink.order("release")
    await bench.mailed(accepted + backlog)
    figures.note("backlog: mails per second", backlog / (perf_counter() - begun))


async def saturated(bench: Bench, cost: int, seconds: float, figures: Figures) -> None:
    """Probe /livez and /readyz beside 16 busy clients, without and with a thousand idle connections."""
    for idle in (0, IDLE_CONNECTIONS):
        streams = [await asyncio.open_connection(HOST, bench.service.port) for _ in range(idle)]
        stop, until, ask = asyncio.Event(), perf_counter() + seconds, bench.register()

        async def client(connection: Connection, first: int, until: float = until, ask: Ask = ask) -> None:
            number = first
            while perf_counter() < until:
                number += 1
                await ask(connection, number)

        async with asyncio.TaskGroup() as group:
            paths = {
                path: group.create_task(probe(Connection(HOST, bench.service.port), path, stop)) for path in PROBED
            }
            await asyncio.gather(
                *(client(one, 10_000 * place) for place, one in enumerate(bench.service.connections(USUAL_CLIENTS)))
            )
            stop.set()
        for path, task in paths.items():
            figures.note(f"{path} p99 ms, cost {cost}, {idle} idle connections", task.result().percentile(0.99))
        for _, writer in streams:
            writer.close()


async def slow_round(bench: Bench, seconds: float, figures: Figures) -> None:
    """Take the share of bcrypt's ceiling that registrations at the default cost reach."""
    for clients in (2, 8, 64):
        ceiling = await asyncio.to_thread(bcrypt_ceiling, SLOW, 3.0)
        load = await closed_loop(bench.service.connections(clients), int(ceiling.rate * seconds), bench.register())
        figures.note(f"cost 12, {clients} clients: share of bcrypt's ceiling", load.rate / ceiling.rate)
        figures.statuses(f"cost 12, {clients} clients", load.statuses)


def memory(service: Service, figures: Figures) -> None:
    """Take the memory of each kind of process, the largest of its kind, as PSS."""
    sizes: dict[str, float] = {"supervisor": pss_megabytes(service.pid)}
    for pid, role in processes(service.pid).items():
        sizes[role] = max(sizes.get(role, 0.0), pss_megabytes(pid))
    for role in ("api", "mail worker", "generation", "supervisor"):
        figures.note(f"PSS MB: {role}", sizes[role])


async def starts(service: Service, figures: Figures) -> None:
    """Take how long a worker needs in the place of a killed one, and a generation from the order to reload."""
    [old, *_] = (pid for pid, role in processes(service.pid).items() if role == "api")
    begun = time()
    os.kill(old, signal.SIGKILL)
    ready = await _logged(service, '"started"', "api")
    figures.note("a worker, from the death of another one until it is ready: s", ready - begun)
    begun = time()
    os.kill(service.pid, signal.SIGHUP)
    figures.note("a generation, from SIGHUP until it is ready: s", await _logged(service, '"reloaded"') - begun)


async def _logged(service: Service, *words: str) -> float:
    """Return when the next line with all of these words has been logged, in Unix time."""
    size = service.log.stat().st_size
    async with asyncio.timeout(60):
        while True:
            for line in service.log.read_text(encoding="utf-8", errors="replace")[size:].splitlines():
                if all(word in line for word in words):
                    return time()
            await asyncio.sleep(0.005)  # between looks at the log


async def memory_curve(bench: Bench, requests: int, figures: Figures) -> None:
    """Take the memory of the API workers as requests come: one registration, then nineteen that are cheaper."""
    register = bench.register()
    others = ("/livez", "/readyz", "/api/v1/users/activation/nobody", "/api/v1/users/me")

    async def ask(connection: Connection, number: int) -> Answer:
        if number % 20 == 0:
            return await register(connection, number)
        return await connection.request("GET", others[number % len(others)])

    step, sizes = requests // 20, []
    for _ in range(20):
        await closed_loop(bench.service.connections(USUAL_CLIENTS), step, ask)
        sizes.append(sum(pss_megabytes(pid) for pid, role in processes(bench.service.pid).items() if role == "api"))
        figures.note("memory curve: MB of all API workers", sizes[-1])
    figures.note(f"growth of the API workers from {step} to {requests} requests: %", 100 * (sizes[-1] / sizes[0] - 1))


async def beside_many(bench: Bench, accounts: int, scale: float, figures: Figures) -> None:
    """Take what registrations cost the servers before and after many accounts and their mails are there."""
    url = bench.service.servers()["database_url"]
    costs = []
    for _ in range(2):
        _, used = await bench.measured(USUAL_CLIENTS, int(2000 * scale), bench.register(), mails=True)
        costs.append(used["postgres"])
        if len(costs) == 1:
            await asyncio.to_thread(_fill, url, accounts)
    figures.note(
        f"PostgreSQL's CPU a registration beside {accounts} accounts, over an empty database", costs[1] / costs[0]
    )
    begun = perf_counter()
    await bench.service.metrics()
    figures.note(f"/api/v1/metrics beside {accounts} accounts: ms", 1000 * (perf_counter() - begun))


def _fill(url: str, accounts: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off; SET statement_timeout = 0")
        for first in range(0, accounts, FILL_STEP):
            connection.execute(FILL, {"first": first, "last": min(first + FILL_STEP, accounts) - 1})


FILL_STEP = 100_000
FILL = """
WITH born AS (
    INSERT INTO vestibule.accounts (id, email_key, email, password_hash, locale, created_at, activated_at)
    SELECT lpad(to_hex(n), 32, '0')::uuid, 'filler' || n || '@example.org', 'filler' || n || '@example.org',
           '$2b$04$' || repeat('x', 53), 'en', now() - interval '7 days', now() - interval '7 days'
    FROM generate_series(%(first)s::integer, %(last)s::integer) AS n
    RETURNING id
)
INSERT INTO vestibule.mails (id, account_id, registration, number, kind, state, created_at, accepted_at, expires_at,
                             key_id)
SELECT id, id, 1, 1, 'code', 'accepted', now() - interval '7 days', now() - interval '7 days',
       now() - interval '7 days', 'k1'
FROM born
"""


class Run:
    """What a run measures, part by part; services start when a part needs them and stop at the end."""

    def __init__(self, stack: AsyncExitStack, rounds: int, scale: float, accounts: int) -> None:
        self.figures = Figures()
        self._accounts = accounts
        self._stack = stack
        self._rounds = rounds
        self._scale = scale

    async def begin(self) -> None:
        """Start what all parts need, and measure what the machine can do."""
        self._route = await self._stack.enter_async_context(bare_route())
        self._bench = await self._started("fast", FAST, "uvloop")
        servers, note = await asyncio.to_thread(self._bench.service.servers), self.figures.note
        note("bcrypt per second, cost 12", (await asyncio.to_thread(bcrypt_ceiling, SLOW, 3.0)).rate)
        note("PostgreSQL commits per second", await asyncio.to_thread(commits_per_second, servers["database_url"]))
        note("Redis round trips per second", await asyncio.to_thread(round_trips_per_second, servers["redis_url"]))
        await bare(self._route, 500)
        begun = perf_counter()
        subprocess.run([VESTIBULE, "--help"], check=True, capture_output=True)  # noqa: S603, ASYNC221 - nothing else runs
        note("vestibule --help: s", perf_counter() - begun)

    async def fast(self) -> None:
        """Measure registrations and activations at the least cost, and what they ask of the servers."""
        for _ in range(self._rounds):
            await fast_round(self._bench, await self._unit(), self._scale, self.figures, "uvloop")
            await shared_servers(self._bench, self._scale, self.figures)
        memory(self._bench.service, self.figures)

    async def mail(self) -> None:
        """Measure how soon mails leave, and how many."""
        for _ in range(self._rounds):
            await mail_times(self._bench, self._scale, self.figures)

    async def refused(self) -> None:
        """Measure requests that are refused."""
        service = self._bench.service
        limited = await self._stack.enter_async_context(beside(service, FAST, "uvloop", REGISTER_LIMIT="1/hour"))
        busy = await self._stack.enter_async_context(beside(service, BUSY_COST, "uvloop"))
        for _ in range(self._rounds):
            await refused_round(self._bench, limited, busy, await self._unit(), self.figures)

    async def trio(self) -> None:
        """Measure the other loop."""
        bench = await self._started("trio", FAST, "trio")
        for _ in range(self._rounds):
            await fast_round(bench, await self._unit(), self._scale, self.figures, "trio")

    async def slow(self) -> None:
        """Measure the default cost: the share of what the machine can hash, and what cheap requests notice."""
        await saturated(self._bench, FAST, 5 * self._scale, self.figures)
        bench = await self._started("slow", SLOW, "uvloop")
        for _ in range(self._rounds):
            await slow_round(bench, 10 * self._scale, self.figures)
        await saturated(bench, SLOW, 5 * self._scale, self.figures)

    async def starts(self) -> None:
        """Measure how long processes take until they are ready."""
        for _ in range(self._rounds):
            await starts(self._bench.service, self.figures)

    async def growth(self) -> None:
        """Measure what many requests and many accounts cost later ones."""
        await memory_curve(await self._started("memory", FAST, "uvloop"), int(200_000 * self._scale), self.figures)
        bench = await self._started("many", FAST, "uvloop")
        await beside_many(bench, self._accounts, self._scale, self.figures)

    async def _started(self, name: str, cost: int, loop: str) -> Bench:
        """Return a new service whose pools and mail worker are warm."""
        service, sink = await self._stack.enter_async_context(up(cost, loop))
        bench = Bench(service, sink, name)
        await closed_loop(service.connections(8), 8 if cost == SLOW else 200, bench.register())
        return bench

    async def _unit(self) -> float:
        milliseconds = await bare(self._route, 3000)
        self.figures.note("bare Quart route: CPU ms", milliseconds)
        return milliseconds


async def run(options: argparse.Namespace) -> Figures:
    """Measure all that was asked for."""
    async with AsyncExitStack() as stack:
        whole = Run(stack, options.rounds, options.scale, options.accounts)
        await whole.begin()
        for part in options.parts:
            await getattr(whole, part)()
        return whole.figures


PARTS = ("fast", "mail", "refused", "trio", "slow", "starts", "growth")


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests in a round")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--accounts", type=int, default=1_000_000, help="beside which registrations are measured")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--compare", type=Path, help="show the change against the figures in this file")
    parser.add_argument("--plot", type=Path, help="draw the multiples into this PNG; needs matplotlib")
    parser.add_argument("--check", action="store_true", help="fail when a multiple is far beyond what was reached")
    options = parser.parse_args()
    figures = asyncio.run(run(options))
    show(figures)
    older = json.loads(options.compare.read_text(encoding="utf-8"))["figures"] if options.compare else {}
    if older:
        compare(older, figures)
    if options.json:
        facts: dict[str, Any] = {"cores": os.cpu_count(), "figures": figures.rounds}
        options.json.write_text(json.dumps(facts, indent=2), encoding="utf-8")
    if options.plot:
        plot({"before": older, "": figures.rounds} if older else {"": figures.rounds}, options.plot)
    if options.check:
        sys.exit(figures.beyond_bounds())


if __name__ == "__main__":
    main()
