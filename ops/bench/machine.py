"""What the machine can do at best, and what each process of a tree has used."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import SystemRandom
from time import perf_counter, process_time
from typing import TYPE_CHECKING

import bcrypt
import psutil
import psycopg
from redis import Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

ROLES = {  # by a part of the command line or of the process title
    "postgres": "postgres",
    "valkey-server": "valkey",
    "catcher": "catcher",
    "vestibule mail worker": "mail worker",
    "vestibule api worker": "api",
    "vestibule generation": "generation",
    "vestibule supervisor": "supervisor",
    "hypercorn": "api",
}


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What bcrypt alone reaches: hashes a second over all cores, and the CPU seconds of one."""

    rate: float
    cpu_seconds: float


def commits_per_second(database_url: str, seconds: float = 1.0) -> float:
    """Return how many transactions of one row a second PostgreSQL commits for one connection per core."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS public.bench (number integer)")

    @contextmanager
    def commits() -> Iterator[Callable[[], object]]:
        with psycopg.connect(database_url, autocommit=True) as connection:
            yield lambda: connection.execute("INSERT INTO public.bench VALUES (1)")

    return _in_parallel(seconds, commits)


def round_trips_per_second(redis_url: str, seconds: float = 1.0) -> float:
    """Return how many PINGs a second Redis answers to one connection per core."""

    @contextmanager
    def pings() -> Iterator[Callable[[], object]]:
        with Redis.from_url(redis_url) as client:
            yield client.ping

    return _in_parallel(seconds, pings)


def _in_parallel(seconds: float, opening: Callable[[], AbstractContextManager[Callable[[], object]]]) -> float:
    def calls() -> int:
        done, until = 0, perf_counter() + seconds
        with opening() as call:
            while perf_counter() < until:
                call()
                done += 1
        return done

    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        return sum(future.result() for future in [pool.submit(calls) for _ in range(cores)]) / seconds


def free_ports(count: int, lowest: int = 18_000, highest: int = 20_000) -> int:
    """Return the first of `count` ports in a row that nobody listens on; a bench must not measure somebody else."""
    start = SystemRandom().randrange(lowest, highest - count)  # another one for each process and each call
    for first in chain(range(start, highest - count), range(lowest, start)):
        if all(_free(first + place) for place in range(count)):
            return first
    raise SystemExit(f"no {count} ports in a row are free between {lowest} and {highest}")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def bcrypt_ceiling(cost: int, seconds: float) -> Ceiling:
    """Hash on all cores for about `seconds`."""
    stop = threading.Event()
    salt = bcrypt.gensalt(cost)

    def hashes() -> int:
        done = 0
        while not stop.is_set():
            bcrypt.hashpw(b"correct horse battery", salt)
            done += 1
        return done

    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        begun, used = perf_counter(), process_time()
        running = [pool.submit(hashes) for _ in range(cores)]
        stop.wait(seconds)
        stop.set()
        done = sum(future.result() for future in running)
        return Ceiling(done / (perf_counter() - begun), (process_time() - used) / done)


def processes(supervisor: int) -> dict[int, str]:
    """Return the role of each process below the supervisor."""
    roles = {}
    for process in psutil.Process(supervisor).children(recursive=True):
        try:
            command = " ".join(process.cmdline()) or process.name()
        except psutil.Error:
            continue
        roles[process.pid] = next((role for mark, role in ROLES.items() if mark in command), "other")
    return roles


def cpu_seconds(supervisor: int) -> dict[str, float]:
    """Return the CPU seconds that each role has used since its processes started, the supervisor's own included."""
    used: dict[str, float] = {}
    for pid, role in {supervisor: "supervisor", **processes(supervisor)}.items():
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue
        used[role] = used.get(role, 0.0) + times.user + times.system + times.children_user + times.children_system
    return used


def password_seconds(pid: int) -> float:
    """Return the CPU seconds of a worker's password threads: the only ones that give way to others (nice > 0)."""
    ticks = 0
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):  # a thread that has just ended
            fields = stat.read_text(encoding="ascii").rpartition(")")[2].split()
            ticks += (int(fields[11]) + int(fields[12])) * (int(fields[16]) > 0)  # utime, stime, nice: proc_pid_stat(5)
    return ticks / os.sysconf("SC_CLK_TCK")


def pss_megabytes(pid: int) -> float:
    """Return the proportional set size of a process in MB (Linux, /proc/PID/smaps_rollup)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1000
    return 0.0
