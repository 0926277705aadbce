"""Measures what observing costs a request: /livez with its log line and without, and with traces on.

One API worker, the cheapest route there is, so that the difference stands out; CPU time of that worker alone, rounds of
each kind in turn, so that a busy neighbour meets all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from client import Answer, Connection, closed_loop
from machine import cpu_seconds, free_ports
from services import HOST, answering, running

if TYPE_CHECKING:
    from collections.abc import Mapping

PORT, CONNECTIONS, WARM_UP = free_ports(4), 8, 500
NOBODY = "http://127.0.0.1:1"  # takes no traces: what is measured is making them
KINDS: dict[str, Mapping[str, str]] = {
    "log ERROR": {"VESTIBULE_LOG_LEVEL": "ERROR"},
    "log INFO (default)": {},
    "log INFO, traces 1 %": {
        "OTEL_EXPORTER_OTLP_ENDPOINT": NOBODY,
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.01",
    },
    "log INFO, all traces": {"OTEL_EXPORTER_OTLP_ENDPOINT": NOBODY},
}


async def livez(connection: Connection, _: int) -> Answer:
    """Ask whether the process can answer."""
    return await connection.request("GET", "/livez")


async def microseconds(port: int, supervisor: int, requests: int) -> float:
    """Return the worker's CPU time of one request."""
    before = cpu_seconds(supervisor)["api"]
    load = await closed_loop([Connection(HOST, port) for _ in range(CONNECTIONS)], requests, livez)
    if load.statuses != {200: requests}:
        raise SystemExit(f"not all were answered: {load.statuses}")
    return (cpu_seconds(supervisor)["api"] - before) / requests * 1e6


async def measure(rounds: int, requests: int) -> dict[str, list[float]]:
    """Return the figures of each round by kind, all services running side by side on one set of servers."""
    figures: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        log = Path(folder) / "log"
        command = str(Path(sys.executable).with_name("vestibule"))
        common = {"VESTIBULE_DATA_DIR": f"{folder}/data", "VESTIBULE_WORKERS": "1", "VESTIBULE_MAX_REQUESTS": "0"}
        common = {**os.environ, **common, "VESTIBULE_BIND": f"{HOST}:{PORT}"}
        servers = stack.enter_context(running([command, "up"], common, log))
        await answering(PORT, "/readyz", servers, log)
        services = {}
        for place, (kind, variables) in enumerate(KINDS.items(), 1):
            own = {**common, "VESTIBULE_BIND": f"{HOST}:{PORT + place}", **variables}
            process = stack.enter_context(running([command, "serve"], own, Path(folder) / f"log{place}"))
            await answering(PORT + place, "/readyz", process, Path(folder) / f"log{place}")
            services[kind] = (PORT + place, process.pid)
            await microseconds(*services[kind], WARM_UP)
        for _ in range(rounds):
            for kind, (port, pid) in services.items():
                figures[kind].append(await microseconds(port, pid, requests))
    return figures


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="of each kind and round")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.rounds, options.requests))
    print(f"{'GET /livez, one worker':26}{'CPU µs, median':>16}{'least':>8}{'beyond the first':>18}")
    least = [min(each) for each in figures.values()]
    for kind, each in figures.items():
        print(f"{kind:26}{statistics.median(each):16.0f}{min(each):8.0f}{min(each) - least[0]:18.0f}")


if __name__ == "__main__":
    main()
