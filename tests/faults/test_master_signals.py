from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.under_test import load, running, wait_for
from tests.servers.ports import free_ports

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.under_test import Running

PORT = free_ports(12)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio", "trio"])
def test_a_stop_waits_for_the_request_that_was_accepted(tmp_path: Path, loop: str) -> None:
    """SIGTERM in the middle of a request of 2 s: the answer arrives, the listener is closed meanwhile, exit code 0."""
    with running(tmp_path, PORT, loop=loop) as service:
        answers: list[tuple[int, str]] = []
        asker = threading.Thread(target=lambda: answers.append(service.get("/slow")))
        asker.start()
        wait_for(lambda: time.monotonic() > began + 0.5, "it is under way") if (began := time.monotonic()) else None
        service.process.terminate()
        wait_for(lambda: _refused(service), "the listener is closed", 1.5)
        asker.join()
        assert answers
        assert answers[0][0] == 200
        assert service.process.wait(5) == 0
        assert service.said().count("drained ") == 2


def test_the_service_answers_while_it_drains_and_readyz_says_no(tmp_path: Path) -> None:
    """During DRAIN_SECONDS new connections are served, /readyz answers 503, and a second signal changes nothing."""
    with running(tmp_path, PORT + 1, VESTIBULE_DRAIN_SECONDS="2") as service:
        began = time.monotonic()
        service.process.send_signal(signal.SIGINT)
        wait_for(lambda: service.get("/readyz")[0] == 503, "not ready", 1.0)
        service.process.send_signal(signal.SIGINT)
        service.process.send_signal(signal.SIGTERM)
        assert service.get()[0] == 200
        assert service.process.wait(10) == 0
        assert time.monotonic() - began >= 2


def test_a_request_that_never_ends_is_cut_at_the_end_of_the_grace(tmp_path: Path) -> None:
    """A worker that does not come to an end is killed when its grace is over, and the exit code is still 0."""
    with running(tmp_path, PORT + 2, VESTIBULE_GRACE_SECONDS="1") as service:
        os.kill(service.workers()[0], signal.SIGSTOP)
        service.process.terminate()
        assert service.process.wait(20) == 0


@pytest.mark.parametrize("loop", ["uvloop", "asyncio", "trio"])
def test_a_reload_under_load_brings_new_code_without_a_failed_request(tmp_path: Path, loop: str) -> None:
    """SIGHUP replaces every worker, one by one; the pid of the master stays and no request fails."""
    with running(tmp_path, PORT + 3, "sleeper", loop=loop) as service, load(service.port) as seen:
        before = service.workers()
        wait_for(lambda: seen.answers > 50, "load")
        service.version.write_text("v2", encoding="utf-8")
        service.hang_up()
        wait_for(lambda: not set(before) & set(service.workers()) and len(service.workers()) == 2, "new workers", 30)
        seen.bodies.clear()
        answered = seen.answers
        wait_for(lambda: seen.answers > answered + 50, "load")
        assert all(body.endswith("v2") for body in seen.bodies)
        assert seen.failures == []
        assert service.process.poll() is None


def test_a_reload_with_bad_settings_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """A setting that cannot be read costs one line in the log; the old workers go on."""
    bad = tmp_path / "cost"
    bad.write_text("12", encoding="utf-8")
    with running(tmp_path, PORT + 4, VESTIBULE_BCRYPT_COST_FILE=str(bad)) as service:
        before = service.workers()
        bad.write_text("99", encoding="utf-8")
        service.hang_up()
        wait_for(lambda: "reload refused" in service.said(), "the refusal", 10)
        assert "VESTIBULE_BCRYPT_COST" in service.said()
        assert service.workers() == before
        assert service.get()[0] == 200


def test_a_reload_follows_the_number_of_workers_and_the_address(tmp_path: Path) -> None:
    """More workers, fewer workers, another port: settings that come from files are read anew."""
    workers, bind = tmp_path / "workers", tmp_path / "bind"
    workers.write_text("2", encoding="utf-8")
    bind.write_text(f"127.0.0.1:{PORT + 9}", encoding="utf-8")
    files = {"VESTIBULE_WORKERS_FILE": str(workers), "VESTIBULE_BIND_FILE": str(bind)}
    with running(tmp_path, PORT + 9, VESTIBULE_WORKERS="", VESTIBULE_BIND="", **files) as service:
        workers.write_text("3", encoding="utf-8")
        service.hang_up()
        wait_for(lambda: len(service.workers()) == 3 and service.get()[0] == 200, "three workers")
        wait_for(lambda: "reloaded" in service.said(), "the first reload has settled")
        workers.write_text("1", encoding="utf-8")
        bind.write_text(f"127.0.0.1:{PORT + 10}", encoding="utf-8")
        service.hang_up()
        wait_for(lambda: len(service.workers()) == 1, "one worker")
        service.port = PORT + 10
        assert service.get()[0] == 200
        service.port = PORT + 9
        assert _refused(service)


def test_a_reload_whose_new_workers_cannot_start_leaves_the_old_ones_in_service(tmp_path: Path) -> None:
    """New code that fails in the worker never takes the place of code that works."""
    with running(tmp_path, PORT + 5) as service, load(service.port) as seen:
        before = service.workers()
        service.version.write_text("broken", encoding="utf-8")
        service.hang_up()
        wait_for(lambda: service.said().count('"fallen"') >= 3, "some tries", 20)
        assert set(before) <= set(service.workers())
        assert seen.failures == []


def test_signals_in_the_middle_of_a_reload_are_not_lost(tmp_path: Path) -> None:
    """Three SIGHUP and a SIGTERM in a row: the service stops in order, whatever the program was doing."""
    with running(tmp_path, PORT + 6) as service:
        for _ in range(3):
            service.hang_up()
        wait_for(lambda: "reload asked for" in service.said(), "the reload begins")
        service.process.terminate()
        assert service.process.wait(20) == 0


@pytest.mark.parametrize("loop", ["uvloop", "trio"])
def test_recycling_under_load_fails_no_request(tmp_path: Path, loop: str) -> None:
    """Workers that have served MAX_REQUESTS are replaced again and again, and kept-alive clients notice nothing."""
    with running(tmp_path, PORT + 7, loop=loop, VESTIBULE_MAX_REQUESTS="100") as service, load(service.port) as seen:
        wait_for(lambda: len({body.split()[0] for body in seen.bodies}) >= 8, "many workers", 60)
        assert seen.failures == []


def test_a_worker_that_is_terminated_by_hand_finishes_and_is_replaced(tmp_path: Path) -> None:
    """SIGTERM to one worker: its request gets its answer and another worker takes its place."""
    with running(tmp_path, PORT + 8, VESTIBULE_WORKERS="1") as service:
        answers: list[tuple[int, str]] = []
        asker = threading.Thread(target=lambda: answers.append(service.get("/slow")))
        asker.start()
        began = time.monotonic()
        wait_for(lambda: time.monotonic() > began + 0.5, "it is under way")
        old = service.workers()[0]
        os.kill(old, signal.SIGTERM)
        asker.join()
        assert answers[0][0] == 200
        wait_for(lambda: service.workers() not in ([], [old]), "a new worker", 10)


def _refused(service: Running) -> bool:
    try:
        service.get()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
