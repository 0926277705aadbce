"""What many requests and many accounts cost those that come later."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

import psycopg
from client import Connection, closed_loop
from machine import processes, pss_megabytes
from workload import USUAL_CLIENTS

if TYPE_CHECKING:
    from client import Answer
    from report import Figures
    from workload import Bench

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
