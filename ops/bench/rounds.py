"""One round of each measurement; the figures of all rounds go into one table."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from http import HTTPStatus
from time import perf_counter, time
from typing import TYPE_CHECKING

import psycopg
from client import Connection, Load, closed_loop, open_loop, probe
from machine import bcrypt_ceiling, cpu_seconds, password_seconds, processes, pss_megabytes
from redis import Redis
from services import HOST
from workload import USUAL_CLIENTS

if TYPE_CHECKING:
    from client import Answer
    from report import Figures
    from services import Service
    from workload import Ask, Bench

CLIENTS = (1, 4, USUAL_CLIENTS, 64)
IDLE_CONNECTIONS = 1000
PROBED = ("/livez", "/readyz")
STEADY_RATE = 20.0  # registrations a second, for the time from an answer to its mail
FAST, SLOW = 4, 12  # bcrypt's cost: the least there is, and the default


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
    await bench.measured(32, count, bench.register(), mails=True)
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
