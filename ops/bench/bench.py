"""Measures one running service against what its machine can do, in rounds, everything in one run.

CPU time is given in multiples of a bare Quart route on the same Hypercorn in the same round: they hold from one
machine to the next, and through most of what busy neighbours do. CPU of a process is its whole utime and stime.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

from client import closed_loop
from growth import beside_many, memory_curve
from machine import bcrypt_ceiling, commits_per_second, round_trips_per_second
from report import Figures, compare, plot, show
from rounds import (
    FAST,
    SLOW,
    bare,
    fast_round,
    mail_times,
    memory,
    refused_round,
    saturated,
    shared_servers,
    slow_round,
    starts,
)
from services import VESTIBULE, bare_route, beside, up
from workload import Bench

BUSY_COST = 14  # a second for a hash: a few requests fill the queue


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
