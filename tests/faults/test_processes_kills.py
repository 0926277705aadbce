from __future__ import annotations

import http.client
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.faults.hostile.raw import get, talk
from tests.faults.outage import load
from tests.faults.under_test import WORKERS, Asker, failures, running
from tests.servers.processes import send, still_there
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.under_test import Running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Give a stand-in with two API workers, two mail workers and an embedded server; a test heals what it hurts."""
    with running(tmp_path_factory.mktemp("p"), "up", MAIL_WORKERS="2") as one:
        yield one
        one.stops()


def pids(service: Running, title: str) -> list[int]:
    """Return the pids of what the supervisor started, by title, or those of the embedded server."""
    if title == "sleeper":
        return [child.pid for child in service.supervisor.children() if child.name() == "sleep"]
    return service.titled(title)


def wait_for_another(service: Running, old: int, promised: float) -> int:
    """Wait until another worker has taken the place of one; return its pid."""
    before = set(service.workers()) | {old}
    wait_for(lambda: set(service.workers()) - before and len(service.workers()) == WORKERS, "another", promised)
    return (set(service.workers()) - before).pop()


def test_processes_carry_their_titles(service: Running) -> None:
    """`ps` names each process of ours, and each leads a session of its own, out of reach of a Ctrl-C."""
    below = service.supervisor.children(recursive=True)
    titles = [" ".join(one.cmdline()).strip() for one in below]
    mails = ["vestibule mail worker"] * 2
    workers = ["vestibule api worker 1", "vestibule api worker 2"]
    assert sorted(titles) == ["sleep 1000", *workers, "vestibule generation 1", *mails]
    assert " ".join(service.supervisor.cmdline()).strip() == "vestibule supervisor"
    assert all(os.getsid(one.pid) == one.pid for one in below)


def test_an_idle_supervisor_costs_next_to_nothing(service: Running) -> None:
    """Less than 2 % of a core while nothing happens."""
    before, began = sum(service.supervisor.cpu_times()[:2]), time.monotonic()
    wait_for(lambda: time.monotonic() - began > 1.5, "time passes")
    assert sum(service.supervisor.cpu_times()[:2]) - before < 0.03


def test_a_killed_worker_is_replaced_within_two_seconds_while_the_others_answer(service: Running) -> None:
    """Kill -9 under load fails at most the requests that the dead worker held, and a new worker comes at once."""
    with load([Asker(service.port) for _ in range(4)], 0.005) as seen:
        old, other = service.workers()
        wait_for(lambda: len(seen) > 50, "load")
        send(old, signal.SIGKILL)
        new = wait_for_another(service, old, 2.0)
        wait_for(lambda: service.get()[1].startswith(f"{new} "), "the new worker answers", 10.0)
        assert len(failures(seen)) <= 4, "only what was open to the dead worker"
        assert other in service.workers()


@pytest.mark.parametrize("title", ["generation", "mail worker", "sleeper"])
def test_what_the_supervisor_started_is_back_within_five_seconds(service: Running, title: str) -> None:
    """Kill -9 brings another one; with a generation its workers die and come back."""
    old = pids(service, title)
    others = set(service.titled("vestibule")) - set(service.workers()) - set(old)
    send(old[0], signal.SIGKILL)
    wait_for(lambda: old[0] not in pids(service, title) and len(pids(service, title)) == len(old), "another one", 5.0)
    wait_for(lambda: len(service.workers()) == WORKERS and service.get()[0] == 200, "the workers", 5.0)
    assert others <= set(service.titled("vestibule"))


def test_a_failure_beside_the_app_ends_the_worker_and_brings_another(service: Running) -> None:
    """Actors that crash too often end their process with a code of its own, not with a worker that answers 503."""
    before, since = service.workers(), len(service.said())
    with suppress(OSError, http.client.HTTPException):
        service.get("/crash")
    wait_for(lambda: len(set(service.workers()) - set(before)) == 1, "another", 5.0)
    service.settles()
    assert '"code":1' in service.said(since)


def test_what_hangs_is_noticed_by_its_silence_and_replaced(service: Running) -> None:
    """Stopped with SIGSTOP, or stuck in a request: worker and mail worker are killed within 10 s, and back."""
    [stopped, stuck], since = service.workers(), len(service.said())
    silent = [stopped, pids(service, "mail worker")[0]]
    for pid in silent:
        send(pid, signal.SIGSTOP)
    with pytest.raises((OSError, http.client.HTTPException)):
        service.get("/stuck", timeout=patience(15.0))
    assert still_there([*silent, stuck], patience(4.0)) == []
    service.settles()
    wait_for(lambda: len(pids(service, "mail worker")) == 2, "another mail worker", 4.0)
    assert service.said(since).count("shows no sign of life") == 3


def test_a_generation_that_shows_no_life_is_replaced(service: Running) -> None:
    """SIGSTOP of the generation: it is killed within 10 s, and all is well again."""
    old = service.titled("generation")
    send(old[0], signal.SIGSTOP)
    assert still_there(old, patience(11.0)) == []
    service.settles()


def test_a_worker_that_is_terminated_by_hand_finishes_and_is_replaced(service: Running) -> None:
    """SIGTERM to one worker: its request gets its answer and another worker takes its place."""
    since = len(service.said()) - 1
    with talk(service.port, get("/slow")) as slow:
        service.says("\nslow ", since)
        old = int(service.said(since).partition("\nslow ")[2].split()[0])
        send(old, signal.SIGTERM)
        service.folder.joinpath("go").touch()
        assert slow.hear().body == f"{old} v1".encode()
    wait_for(lambda: old not in service.workers(), "it ends", 10.0)
    service.settles()


def test_a_crash_loop_is_slowed_down_and_ends_with_its_cause(service: Running) -> None:
    """Workers that cannot start are tried ever more seldom; the supervisor lives on."""
    since, began = len(service.said()), time.monotonic()
    service.becomes("broken")
    for pid in service.workers():
        send(pid, signal.SIGKILL)
    wait_for(lambda: time.monotonic() - began > 2.0 and service.said(since).count('"ended"') >= 4, "some tries")
    assert service.said(since).count('"ended"') < 20
    service.becomes("v1")
    service.settles()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_survives_the_supervisor(tmp_path: Path, number: signal.Signals) -> None:
    """Kill -9, or a Ctrl-C that reaches its whole process group, takes all processes with it within 5 s."""
    with running(tmp_path, "up", MAIL_WORKERS="1") as service:
        family = [child.pid for child in service.supervisor.children(recursive=True)]
        assert len(family) == 5
        os.killpg(service.process.pid, number)
        assert still_there([service.process.pid, *family], patience(5.0)) == []
        assert service.process.wait(5) == (0 if number == signal.SIGINT else -number)
