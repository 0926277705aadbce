from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.faults.under_test import load, running
from tests.servers.ports import free_ports
from tests.servers.processes import send, still_there
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.under_test import Running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Give a stand-in with two API workers, two mail workers and an embedded server; a test heals what it hurts."""
    folder = tmp_path_factory.mktemp("p")
    with running(folder, free_ports(1), "up", STAND_IN_SERVERS="sleeper", STAND_IN_MAIL_WORKERS="2") as one:
        yield one
        one.process.terminate()
        assert one.process.wait(10) == 0


def _servers(service: Running) -> list[int]:
    return [child.pid for child in service.supervisor.children() if child.name() == "sleep"]


def test_processes_carry_their_titles(service: Running) -> None:
    """`ps` names each process of ours, and each leads a session of its own, out of reach of a Ctrl-C."""
    titles = [" ".join(one.cmdline()).strip() for one in service.supervisor.children(recursive=True)]
    mails = ["vestibule mail worker"] * 2
    workers = ["vestibule api worker 1", "vestibule api worker 2"]
    assert sorted(titles) == ["sleep 1000", *workers, "vestibule generation 1", *mails]
    assert " ".join(service.supervisor.cmdline()).strip() == "vestibule supervisor"
    below = service.supervisor.children(recursive=True)
    assert all(os.getsid(one.pid) == one.pid for one in below)


def test_an_idle_supervisor_costs_next_to_nothing(service: Running) -> None:
    """Less than 2 % of a core while nothing happens."""
    before, began = sum(service.supervisor.cpu_times()[:2]), time.monotonic()
    wait_for(lambda: time.monotonic() - began > 1.5, "time passes")
    assert sum(service.supervisor.cpu_times()[:2]) - before < 0.03


def test_a_killed_worker_is_replaced_within_two_seconds_while_the_others_answer(service: Running) -> None:
    """Kill -9 under load fails at most the requests that the dead worker held, and a new worker comes at once."""
    with load(service.port) as seen:
        before = service.workers()
        wait_for(lambda: seen.answers > 50, "load")
        send(before[0], signal.SIGKILL)
        wait_for(lambda: len(set(service.workers()) - set(before)) == 1, "a new worker", 2.0)
        new = (set(service.workers()) - set(before)).pop()
        wait_for(lambda: service.get()[1].startswith(f"{new} "), "the new worker answers", 10.0)
        assert len(seen.failures) <= 4, "only what was open to the dead worker"
        assert before[1] in service.workers()


@pytest.mark.parametrize("title", ["generation", "mail worker", "sleeper"])
def test_what_the_supervisor_started_is_back_within_five_seconds(service: Running, title: str) -> None:
    """Kill -9 brings another one; with a generation its workers die and come back."""

    def pids() -> list[int]:
        return _servers(service) if title == "sleeper" else service.titled(title)

    others, old = set(service.titled("vestibule")) - set(service.workers()), pids()
    send(old[0], signal.SIGKILL)
    wait_for(lambda: old[0] not in pids() and len(pids()) == len(old), "another one", 5.0)
    wait_for(lambda: len(service.workers()) == 2 and service.get()[0] == 200, "the workers", 5.0)
    assert others - set(old) <= set(service.titled("vestibule"))


def test_a_failure_beside_the_app_ends_the_worker_and_brings_another(service: Running) -> None:
    """Actors that crash too often end their process with a code of its own, not with a worker that answers 503."""
    before, told = service.workers(), len(service.said())
    with suppress(OSError, http.client.HTTPException):
        service.get("/crash")
    wait_for(lambda: len(set(service.workers()) - set(before)) == 1 and len(service.workers()) == 2, "another", 5.0)
    assert '"code":1' in service.said()[told:]
    assert service.get()[0] == 200


def test_what_hangs_is_noticed_by_its_silence_and_replaced(service: Running) -> None:
    """Stopped with SIGSTOP, or stuck in a request: worker and mail worker are killed within 10 s, and back."""
    stopped = [service.workers()[0], service.titled("mail worker")[0]]
    stuck, told = service.workers()[1], len(service.said())
    for pid in stopped:
        send(pid, signal.SIGSTOP)
    with pytest.raises((OSError, http.client.HTTPException)):
        service.get("/stuck", timeout=patience(15.0))
    assert still_there([*stopped, stuck], patience(4.0)) == []
    wait_for(lambda: len(service.workers()) == 2 and service.get()[0] == 200, "other workers", 4.0)
    wait_for(lambda: len(service.titled("mail worker")) == 2, "another mail worker", 4.0)
    assert service.said()[told:].count("shows no sign of life") == 3


def test_a_worker_that_is_terminated_by_hand_finishes_and_is_replaced(service: Running) -> None:
    """SIGTERM to one worker: its request gets its answer and another worker takes its place."""
    go, told = service.folder / "go", len(service.said()) - 1
    answers: list[tuple[int, str]] = []
    asker = threading.Thread(target=lambda: answers.append(service.get("/slow")))
    asker.start()
    old = service.asked(told)
    send(old, signal.SIGTERM)
    go.touch()
    asker.join()
    assert answers == [(200, f"{old} v1")]
    wait_for(lambda: old not in service.workers() and len(service.workers()) == 2, "a new worker", 10)
    go.unlink()


def test_a_crash_loop_is_slowed_down_and_ends_with_its_cause(service: Running) -> None:
    """Workers that cannot start are tried ever more seldom; the supervisor lives on."""
    told = len(service.said())
    service.version.write_text("broken", encoding="utf-8")
    for pid in service.workers():
        send(pid, signal.SIGKILL)
    began = time.monotonic()
    wait_for(lambda: time.monotonic() - began > 2.0, "some tries")
    assert 4 <= service.said()[told:].count('"ended"') < 20
    service.version.write_text("v1", encoding="utf-8")
    wait_for(lambda: len(service.workers()) == 2 and service.get()[1].endswith("v1"), "it recovers", 10.0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_survives_the_supervisor(tmp_path: Path, number: signal.Signals) -> None:
    """Kill -9, or a Ctrl-C that reaches its whole process group, takes all processes with it within 5 s."""
    with running(tmp_path, free_ports(1), "up", STAND_IN_SERVERS="sleeper", STAND_IN_MAIL_WORKERS="1") as service:
        family = [child.pid for child in service.supervisor.children(recursive=True)]
        assert len(family) == 5
        os.killpg(service.process.pid, number)
        assert still_there([service.process.pid, *family], patience(5.0)) == []
        assert service.process.wait(5) == (0 if number == signal.SIGINT else -number)
