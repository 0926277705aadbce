from __future__ import annotations

import http.client
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.faults.under_test import alive, load, running, wait_for
from tests.servers.ports import free_ports

if TYPE_CHECKING:
    from pathlib import Path

    import psutil

PORT = free_ports(12)


@pytest.mark.parametrize("loop", ["uvloop", "trio"])
def test_a_killed_worker_is_replaced_within_two_seconds_while_the_others_answer(tmp_path: Path, loop: str) -> None:
    """Kill -9 under load fails at most the requests that the dead worker held, and a new worker comes at once."""
    with running(tmp_path, PORT, loop=loop) as service, load(PORT) as seen:
        before = service.workers()
        wait_for(lambda: seen.answers > 50, "load")
        os.kill(before[0], signal.SIGKILL)
        wait_for(lambda: len(set(service.workers()) - set(before)) == 1, "a new worker", 2.0)
        new = (set(service.workers()) - set(before)).pop()
        wait_for(lambda: service.get()[1].startswith(f"{new} "), "the new worker answers", 10.0)
        assert len(seen.failures) <= 4, "only what was open to the dead worker"
        assert before[1] in service.workers()


def test_a_stopped_worker_is_noticed_by_its_silence_and_replaced(tmp_path: Path) -> None:
    """SIGSTOP of a worker: it misses its beats, is killed and replaced within 10 s."""
    with running(tmp_path, PORT + 1) as service:
        before = service.workers()
        os.kill(before[0], signal.SIGSTOP)
        wait_for(lambda: before[0] not in service.workers() and len(service.workers()) == 2, "a replacement", 12.0)
        assert service.get()[0] == 200
        assert '"reason":"silent"' in service.said()


def test_a_worker_whose_loop_is_stuck_is_replaced(tmp_path: Path) -> None:
    """A request that blocks the loop costs its own answer and its worker's life, not the service's."""
    with running(tmp_path, PORT + 2) as service:
        before = service.workers()
        with pytest.raises(Exception):  # noqa: B017, PT011 - however the connection ends
            service.get("/stuck", timeout=15.0)
        wait_for(lambda: len(set(service.workers()) - set(before)) == 1, "a replacement", 2.0)
        assert service.get()[0] == 200


def test_nothing_survives_a_killed_master(tmp_path: Path) -> None:
    """Kill -9 of the master takes workers and commands with it within 5 s."""
    with running(tmp_path, PORT + 3, "sleeper") as service:
        family = [child.pid for child in service.master.children(recursive=True)]
        assert len(family) == 3
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait(5)
        wait_for(lambda: not any(alive(pid) for pid in family), "all are gone", 5.0)


def test_a_killed_command_is_back_within_five_seconds(tmp_path: Path) -> None:
    """Kill -9 of a command child brings a new one, while the API workers stay as they are."""
    with running(tmp_path, PORT + 4, "sleeper") as service:
        workers = service.workers()
        for _ in range(3):
            old = _sleeper(service.master)
            os.kill(old, signal.SIGKILL)
            wait_for(lambda old=old: _sleeper(service.master) not in {0, old}, "a new one", 5.0)  # type: ignore[misc]
        assert service.workers() == workers


def test_a_crash_loop_is_slowed_down_and_told(tmp_path: Path) -> None:
    """Workers that cannot start are tried ever more seldom; the master lives and says so."""
    with running(tmp_path, PORT + 5) as service:
        service.version.write_text("broken", encoding="utf-8")
        for pid in service.workers():
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: service.said().count('"next_try_in_seconds":0.8') >= 1, "a longer pause", 20.0)
        tries = service.said().count('"fallen"')
        assert tries < 20
        service.version.write_text("mended", encoding="utf-8")
        wait_for(lambda: len(service.workers()) == 2 and service.get()[1].endswith("mended"), "it recovers", 10.0)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio", "trio"])
def test_a_failure_beside_the_app_ends_the_worker_and_brings_another(tmp_path: Path, loop: str) -> None:
    """Actors that crash too often end their process with a code of its own, not with a worker that answers 503."""
    with running(tmp_path, PORT + 8, loop=loop, VESTIBULE_WORKERS="1") as service:
        before = service.workers()
        with suppress(OSError, http.client.HTTPException):
            service.get("/crash")
        wait_for(lambda: len(set(service.workers()) - set(before)) == 1, "another", 5.0)
        assert '"code":1' in service.said()
        assert service.get()[0] == 200


def test_children_lead_sessions_of_their_own(tmp_path: Path) -> None:
    """A Ctrl-C at the terminal reaches the master's process group only, so no child may be in it."""
    with running(tmp_path, PORT + 6, "sleeper") as service:
        master = os.getpgid(service.process.pid)
        assert all(os.getpgid(child.pid) != master for child in service.master.children())


def test_an_idle_master_costs_next_to_nothing(tmp_path: Path) -> None:
    """Watching is cheap: less than 2 % of a core while nothing happens."""
    with running(tmp_path, PORT + 7) as service:
        before, began = _cpu(service.master), time.monotonic()
        wait_for(lambda: time.monotonic() - began > 3, "time passes")
        assert _cpu(service.master) - before < 0.06


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _sleeper(master: psutil.Process) -> int:
    return next((child.pid for child in master.children() if child.name() == "sleep"), 0)
