from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.faults.under_test import alive, load, running, wait_for
from tests.servers.ports import free_ports
from tests.servers.signals import send

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.under_test import Running

UVLOOP = pytest.mark.parametrize("stand_in", ["uvloop"], indirect=True)


def test_a_killed_worker_is_replaced_within_two_seconds_while_the_others_answer(stand_in: Running) -> None:
    """Kill -9 under load fails at most the requests that the dead worker held, and a new worker comes at once."""
    with load(stand_in.port) as seen:
        before = stand_in.workers()
        wait_for(lambda: seen.answers > 50, "load")
        send(before[0], signal.SIGKILL)
        wait_for(lambda: len(set(stand_in.workers()) - set(before)) == 1, "a new worker", 2.0)
        new = (set(stand_in.workers()) - set(before)).pop()
        wait_for(lambda: stand_in.get()[1].startswith(f"{new} "), "the new worker answers", 10.0)
        assert len(seen.failures) <= 4, "only what was open to the dead worker"
        assert before[1] in stand_in.workers()


def test_a_failure_beside_the_app_ends_the_worker_and_brings_another(stand_in: Running) -> None:
    """Actors that crash too often end their process with a code of its own, not with a worker that answers 503."""
    before, told = stand_in.workers(), len(stand_in.said())
    with suppress(OSError, http.client.HTTPException):
        stand_in.get("/crash")
    wait_for(lambda: len(set(stand_in.workers()) - set(before)) == 1 and len(stand_in.workers()) == 2, "another", 5.0)
    assert '"code":1' in stand_in.said()[told:]
    assert stand_in.get()[0] == 200


@UVLOOP
def test_workers_that_hang_are_noticed_by_their_silence_and_replaced(stand_in: Running) -> None:
    """A worker is stopped, another's loop is stuck in a request: both miss their beats and are replaced within 10 s."""
    before, told = stand_in.workers(), len(stand_in.said())
    send(before[0], signal.SIGSTOP)
    with pytest.raises((OSError, http.client.HTTPException)):
        stand_in.get("/stuck", timeout=15.0)
    wait_for(lambda: not set(before) & set(stand_in.workers()) and len(stand_in.workers()) == 2, "replacements", 4.0)
    assert stand_in.get()[0] == 200
    assert stand_in.said()[told:].count('"reason":"silent"') == 2


@UVLOOP
def test_a_worker_that_is_terminated_by_hand_finishes_and_is_replaced(stand_in: Running) -> None:
    """SIGTERM to one worker: its request gets its answer and another worker takes its place."""
    go, told = stand_in.folder / "go", len(stand_in.said()) - 1
    answers: list[tuple[int, str]] = []
    asker = threading.Thread(target=lambda: answers.append(stand_in.get("/slow")))
    asker.start()
    old = stand_in.asked(told)
    send(old, signal.SIGTERM)
    go.touch()
    asker.join()
    assert answers == [(200, f"{old} v1")]
    wait_for(lambda: old not in stand_in.workers() and len(stand_in.workers()) == 2, "a new worker", 10)
    go.unlink()


@UVLOOP
def test_a_killed_command_is_back_within_five_seconds(stand_in: Running) -> None:
    """Kill -9 of a command child brings a new one, while the API workers stay as they are."""
    workers = stand_in.workers()
    for _ in range(3):
        wait_for(lambda: _sleeper(stand_in.master), "it has become its command", 5.0)
        old = _sleeper(stand_in.master)
        send(old, signal.SIGKILL)
        wait_for(partial(_another_sleeper, stand_in.master, old), "a new one", 5.0)
    assert stand_in.workers() == workers


@UVLOOP
def test_children_lead_sessions_of_their_own(stand_in: Running) -> None:
    """A Ctrl-C at the terminal reaches the master's process group only, so no child may be in it."""
    master = os.getpgid(stand_in.process.pid)
    assert all(os.getpgid(child.pid) != master for child in stand_in.master.children())


@UVLOOP
def test_an_idle_master_costs_next_to_nothing(stand_in: Running) -> None:
    """Watching is cheap: less than 2 % of a core while nothing happens."""
    before, began = _cpu(stand_in.master), time.monotonic()
    wait_for(lambda: time.monotonic() - began > 2.5, "time passes")
    assert _cpu(stand_in.master) - before < 0.05


def test_nothing_survives_a_killed_master(tmp_path: Path) -> None:
    """Kill -9 of the master takes workers and commands with it within 5 s."""
    with running(tmp_path, free_ports(1), "sleeper") as service:
        family = [child.pid for child in service.master.children(recursive=True)]
        assert len(family) == 3
        send(service.process.pid, signal.SIGKILL)
        service.process.wait(5)
        wait_for(lambda: not any(alive(pid) for pid in family), "all are gone", 5.0)


def test_a_crash_loop_is_slowed_down_and_told(tmp_path: Path) -> None:
    """Workers that cannot start are tried ever more seldom; the master lives and says so."""
    with running(tmp_path, free_ports(1)) as service:
        service.version.write_text("broken", encoding="utf-8")
        for pid in service.workers():
            send(pid, signal.SIGKILL)
        wait_for(lambda: service.said().count('"next_try_in_seconds":0.8') >= 1, "a longer pause", 20.0)
        tries = service.said().count('"fallen"')
        assert tries < 20
        service.version.write_text("mended", encoding="utf-8")
        wait_for(lambda: len(service.workers()) == 2 and service.get()[1].endswith("mended"), "it recovers", 10.0)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _sleeper(master: psutil.Process) -> int:
    for child in master.children():
        with suppress(psutil.NoSuchProcess):  # it was killed a moment ago
            if child.name() == "sleep":
                return child.pid
    return 0


def _another_sleeper(master: psutil.Process, old: int) -> bool:
    return _sleeper(master) not in {0, old}
