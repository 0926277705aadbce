"""Tells whether answers take longer for an address that is known; prints the effect, not an opinion.

Two kinds of calls are made in turns, in a random order within each pair, one at a time over one connection. |t| is
Welch's, d is Cohen's: below 2 and 0.2 nothing is seen in so many calls. Run it on a calm machine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import sys
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, median, variance
from typing import TYPE_CHECKING

from client import Connection, closed_loop
from services import up
from workload import Bench

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from client import Answer
    from services import Service

    Ask = Callable[[Connection, int], Awaitable[Answer]]

OWNERS, OTHERS, WRONG = "the owners own words", "somebody elses words", "no password of anyone"
ACCEPTED, FAILED, UNAUTHORIZED = 202, 400, 401
COIN = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Effect:
    """What two samples of milliseconds differ by."""

    what: str
    first: list[float]
    second: list[float]

    def line(self) -> str:
        """Return the row of the table."""
        count, difference = len(self.first), fmean(self.first) - fmean(self.second)
        spread = (variance(self.first) + variance(self.second)) or 1e-12
        t, d = difference / sqrt(spread / count), difference / sqrt(spread / 2)
        medians = f"{median(self.first):8.2f} {median(self.second):8.2f}"
        return f"{self.what:<54} {count:>5} {medians} {difference:>8.3f} {abs(t):>6.2f} {abs(d):>6.3f}"


HEAD = f"{'':<54} {'calls':>5} {'median':>8} {'median':>8} {'ms':>8} {'|t|':>6} {'d':>6}"


def register(address: Callable[[int], str], password: str) -> Ask:
    """Return a call that registers the address of a number."""

    async def ask(connection: Connection, number: int) -> Answer:
        body = json.dumps({"email": address(number), "password": password}).encode()
        return await connection.request("POST", "/api/v1/users/register", body)

    return ask


def basic(method: str, path: str, address: Callable[[int], str], password: str, body: bytes = b"") -> Ask:
    """Return a call with Basic auth for the address of a number."""

    async def ask(connection: Connection, number: int) -> Answer:
        own = base64.b64encode(f"{address(number)}:{password}".encode()).decode()
        return await connection.request(method, f"/api/v1/users/{path}", body, f"Authorization: Basic {own}\r\n")

    return ask


async def compare(connection: Connection, what: str, count: int, status: int, calls: tuple[Ask, Ask]) -> Effect:
    """Make both calls `count` times in turns; ends the run when one of them is not answered with `status`."""
    samples: tuple[list[float], list[float]] = ([], [])
    try:
        for number in range(count):
            for which in COIN.sample((0, 1), 2):
                answer = await calls[which](connection, number)
                if answer.status != status:
                    sys.exit(f"timing.py: {what}: answered with {answer.status}")
                samples[which].append(answer.milliseconds)
    finally:
        connection.close()
    return Effect(what, *samples)


async def prepare(service: Service, count: int) -> None:
    """Register the addresses that are known from then on."""
    await closed_loop(service.connections(4), count, register(known, OWNERS))


def known(number: int) -> str:
    """Return an address that is registered."""
    return f"known{number}@example.org"


def unknown(number: int) -> str:
    """Return an address as long that is not."""
    return f"other{number}@example.org"


async def measure_open(cost: int, count: int, loop: str) -> None:
    """Print what log-in tells of an open service."""
    async with up(cost, loop) as (service, _):
        await prepare(service, count)
        login = basic("GET", "me", known, WRONG), basic("GET", "me", unknown, WRONG)
        what = "open: log-in, wrong password, known : unknown"
        [connection] = service.connections(1)
        print((await compare(connection, what, count, UNAUTHORIZED, login)).line())


async def measure_strict(cost: int, count: int, loop: str) -> None:
    """Print what a strict service tells somebody who registers active and free addresses and tries his password."""
    async with up(cost, loop, ENUMERATION="strict") as (service, sink):
        bench = Bench(service, sink, "bench")
        await bench.measured(4, count, bench.register(), mails=True)
        accounts = list(bench.answered)
        activate, _ = await bench.activate()
        await closed_loop(service.connections(4), count, activate)

        def active(number: int) -> str:
            return accounts[number]

        def free(number: int) -> str:
            return active(number).replace("bench", "fresh")

        async def shown(what: str, status: int, make: Callable[[Callable[[int], str]], Ask]) -> None:
            [connection], both = service.connections(1), (make(active), make(free))
            effect = await compare(connection, f"strict: {what}, active : free", count, status, both)
            print(effect.line(), flush=True)

        await shown("log-in, wrong password", UNAUTHORIZED, lambda address: basic("GET", "me", address, WRONG))
        await shown("register", ACCEPTED, lambda address: register(address, OTHERS))
        code = b'{"code": "123456"}'
        await shown("then activate", FAILED, lambda address: basic("POST", "activate", address, OTHERS, code))
        await shown("then resend", ACCEPTED, lambda address: basic("POST", "resend", address, OTHERS, b"{}"))
        await shown("then status", UNAUTHORIZED, lambda address: basic("GET", "activation", address, OTHERS))
        await shown("then log-in", UNAUTHORIZED, lambda address: basic("GET", "me", address, OTHERS))


def main() -> None:
    """Do what the options say."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cost", type=int, default=10, help="of bcrypt")
    options.add_argument("--calls", type=int, default=200, help="of each kind")
    options.add_argument("--loop", default="uvloop", choices=("uvloop", "asyncio", "trio"))
    options.add_argument("--modes", nargs="+", default=("open", "strict"), choices=("open", "strict"))
    chosen = options.parse_args()
    print(HEAD)
    for mode in chosen.modes:
        measure = measure_strict if mode == "strict" else measure_open
        asyncio.run(measure(chosen.cost, chosen.calls, chosen.loop))


if __name__ == "__main__":
    main()
