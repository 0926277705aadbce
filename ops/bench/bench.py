"""Measures one running service against what its machine can do; bounded, on embedded servers, everything in one run.

Ratios are what to quote: the ceiling (bcrypt over all cores, a bare Quart route) is measured in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from client import Answer, Connection, Load, closed_loop, probe
from machine import Ceiling, bcrypt_ceiling, cpu_seconds, free_ports, processes, pss_megabytes
from report import Row, show

from service.embedded.mail_catcher import KEPT, list_mails

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    Ask = Callable[[Connection, int], Awaitable[Answer]]

HOST = "127.0.0.1"
PORT = free_ports(2)
BARE_PORT = PORT + 1
PASSWORD = "correct horse battery staple"  # noqa: S105 - of accounts that live for a minute
WARM_UP = 20  # registrations: the pools are filled, and the mail worker has been imported
START_SECONDS, MAILS_SECONDS = 30.0, 60.0
OPEN = ("REGISTER", "ACTIVATE", "PASSWORD", "PASSWORD_CLIENT", "BASIC")
CODE_LINE = re.compile(r"^\s*(\d{6})\s*$", re.MULTILINE)


class Bench:
    """One service at one cost, and the rows that were measured on it."""

    def __init__(self, supervisor: int, cost: int, ceiling: Ceiling, data_dir: Path) -> None:
        self.supervisor = supervisor
        self.cost = cost
        self.ceiling = ceiling
        self.data_dir = data_dir
        self.accounts: list[str] = []

    async def registrations(self, connections: int, count: int) -> Row:
        """Register `count` accounts and wait until all their mails are accepted."""
        first = len(self.accounts)
        self.accounts += [f"bench{self.cost}-{first + number}@example.org" for number in range(count)]

        async def register(connection: Connection, number: int) -> Answer:
            body = json.dumps({"email": self.accounts[first + number], "password": PASSWORD}).encode()
            return await connection.request("POST", "/api/v1/users/register", body)

        return await self._measured("register + mail", connections, count, register, mails=True)

    async def activations(self, connections: int) -> Row:
        """Activate every account with the code of its mail; of many, those whose mails the catcher has kept."""
        codes = await asyncio.to_thread(mailed_codes, self.data_dir / "mails")
        owners = [email for email in self.accounts if email in codes]

        async def activate(connection: Connection, number: int) -> Answer:
            email = owners[number]
            basic = base64.b64encode(f"{email}:{PASSWORD}".encode()).decode()
            body = json.dumps({"code": codes[email]}).encode()
            headers = f"Authorization: Basic {basic}\r\n"
            return await connection.request("POST", "/api/v1/users/activate", body, headers)

        return await self._measured("activate", connections, len(owners), activate, mails=False)

    async def _measured(self, what: str, connections: int, count: int, ask: Ask, *, mails: bool) -> Row:
        stop = asyncio.Event()
        before = cpu_seconds(self.supervisor)
        async with asyncio.TaskGroup() as group:
            livez = group.create_task(probe(Connection(HOST, PORT), "/livez", stop))
            load: Load = await closed_loop([Connection(HOST, PORT) for _ in range(connections)], count, ask)
            stop.set()
        if mails:
            await all_mailed(len(self.accounts))
        after = cpu_seconds(self.supervisor)
        used = {role: (after[role] - before.get(role, 0.0)) * 1000 / count for role in after}
        used["api"] = used.get("api", 0.0) - 1000 * self.ceiling.cpu_seconds
        return Row(
            f"{what}, cost {self.cost}",
            connections,
            count,
            load.rate,
            load.percentile(0.5),
            load.percentile(0.99),
            livez.result().percentile(0.99),
            load.rate / self.ceiling.rate,
            used,
            load.statuses,
        )


async def metrics() -> dict[str, dict[str, int]]:
    """Return the service's own metrics."""
    connection = Connection(HOST, PORT)
    try:
        found: dict[str, dict[str, int]] = (await connection.request("GET", "/api/v1/metrics")).json()
        return found
    finally:
        connection.close()


async def all_mailed(count: int) -> None:
    """Return once so many mails are accepted; ends the run with a line when that takes too long."""
    async with asyncio.timeout(MAILS_SECONDS):
        while (await metrics())["business_metrics"]["mails_accepted"] < count:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)  # between looks at the metrics


def mailed_codes(folder: Path) -> dict[str, str]:
    """Return the code of each address from the development catcher's folder."""
    found = ((mail.to, CODE_LINE.search(mail.text)) for mail in list_mails(folder, KEPT))
    return {recipient: code.group(1) for recipient, code in found if code}


@asynccontextmanager
async def service(cost: int, loop: str, ceiling: Ceiling, **others: str) -> AsyncIterator[Bench]:
    """Run `vestibule up` with all limits off and the other settings around the body, on servers of its own."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {f"VESTIBULE_{name}_LIMIT": "off" for name in OPEN} | {
            "VESTIBULE_DATA_DIR": f"{folder}/data",
            "VESTIBULE_BIND": f"{HOST}:{PORT}",
            "VESTIBULE_BCRYPT_COST": str(cost),
            "VESTIBULE_ALLOW_WEAK_HASH": "1",
            "VESTIBULE_CODE_LIMITS": "off",
            "VESTIBULE_CODE_TTL_SECONDS": "900",
            "VESTIBULE_CODE_MAX_AGE_SECONDS": "1800",
            "VESTIBULE_LOOP": loop,
            **{f"VESTIBULE_{name}": value for name, value in others.items()},
        }
        command = [str(Path(sys.executable).with_name("vestibule")), "up"]
        log = Path(folder) / "log"
        plain = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
        with running(command, plain | settings, log) as process:
            await answering(PORT, "/readyz", process, log)
            yield Bench(process.pid, cost, ceiling, Path(settings["VESTIBULE_DATA_DIR"]))


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a process group of its own around the body."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


async def answering(port: int, path: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the path answers 200 or 404; ends the run with what the process said when it does not."""
    deadline = monotonic() + START_SECONDS
    while process.poll() is None and monotonic() < deadline:
        try:
            if (await Connection(HOST, port).request("GET", path)).status in {200, 404}:
                return
        except (OSError, EOFError):
            await asyncio.sleep(0.05)  # it is starting
    raise SystemExit(f"not ready: {await asyncio.to_thread(log.read_text, errors='replace')}")


async def bare_route(connections: int, count: int) -> Row:
    """Measure a Quart route that does nothing, on as many Hypercorn workers as the service has."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        workers = str(max(2, os.cpu_count() or 1))
        command = [sys.executable, "-m", "hypercorn", "-k", "uvloop", "-w", workers, "-b", f"{HOST}:{BARE_PORT}"]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
        with running([*command, "bare:app"], environment, log) as process:
            await answering(BARE_PORT, "/", process, log)

            async def post(connection: Connection, _: int) -> Answer:
                return await connection.request("POST", "/nothing", b"{}")

            before = sum(cpu_seconds(process.pid).values())
            load: Load = await closed_loop([Connection(HOST, BARE_PORT) for _ in range(connections)], count, post)
            used = (sum(cpu_seconds(process.pid).values()) - before) * 1000 / count
    p50, p99 = load.percentile(0.5), load.percentile(0.99)
    return Row("bare Quart route", connections, count, load.rate, p50, p99, None, None, {"api": used}, load.statuses)


async def run(options: argparse.Namespace) -> tuple[list[Row], dict[str, object]]:
    """Measure the ceiling, then the service at each cost."""
    rows = [await bare_route(8, options.bare)]
    facts: dict[str, object] = {"cores": os.cpu_count(), "loop": options.loop}
    for cost, count, seconds in ((4, options.fast, 1.0), (12, options.slow, 4.0)):
        ceiling = await asyncio.to_thread(bcrypt_ceiling, cost, seconds)
        facts[f"CPU ms of one hash, cost {cost}"] = round(1000 * ceiling.cpu_seconds, 2)
        facts[f"bcrypt a second, cost {cost}, all cores"] = round(ceiling.rate, 1)
        async with service(cost, options.loop, ceiling) as bench:
            await bench.registrations(8, WARM_UP)
            rows += [await bench.registrations(connections, count) for connections in (8, 32)]
            rows.append(await bench.activations(8))
            sizes = [pss_megabytes(pid) for pid, role in processes(bench.supervisor).items() if role == "api"]
            facts[f"PSS of each API worker, MB, cost {cost}"] = [round(size, 1) for size in sizes]
    return rows, facts


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", default="uvloop", choices=["uvloop", "asyncio", "trio"])
    parser.add_argument("--bare", type=int, default=4000, help="requests to the bare route")
    parser.add_argument("--fast", type=int, default=400, help="registrations at cost 4, per number of connections")
    parser.add_argument("--slow", type=int, default=160, help="registrations at cost 12, per number of connections")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    rows, facts = asyncio.run(run(options))
    if options.json:
        print(json.dumps({"facts": facts, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        show(rows, facts)


if __name__ == "__main__":
    main()
