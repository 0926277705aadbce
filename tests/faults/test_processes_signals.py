from __future__ import annotations

import http.client
import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.under_test import load, running
from tests.servers.ports import free_ports
from tests.servers.processes import send, still_there
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.under_test import Running

WORKERS = 2
AT_TERMINAL = [sys.executable, str(Path(__file__).with_name("at_terminal.py"))]


@pytest.fixture(scope="module", params=["uvloop", "trio"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Give a stand-in with two API workers and a mail worker; a test heals what it hurts."""
    folder = tmp_path_factory.mktemp("p")
    with running(folder, free_ports(1), "up", loop=request.param, STAND_IN_MAIL_WORKERS="1") as one:
        yield one
        one.process.terminate()
        assert one.process.wait(10) == 0
        assert "Traceback" not in one.said()


@contextmanager
def slow_request(service: Running) -> Iterator[list[tuple[int, str]]]:
    """Hold a request while the body runs; its answer, if there is one, is in the list afterwards."""
    answers: list[tuple[int, str]] = []

    def ask() -> None:
        with suppress(http.client.HTTPException, OSError):
            answers.append(service.get("/slow"))

    go, told = service.folder / "go", max(0, len(service.said()) - 1)
    asker = threading.Thread(target=ask)
    asker.start()
    service.asked(told)
    try:
        yield answers
    finally:
        go.touch()
        asker.join()
        go.unlink()


def refused(service: Running) -> bool:
    """Return whether nothing listens at the address."""
    try:
        service.get()
    except ConnectionRefusedError:
        return True
    except (OSError, http.client.HTTPException):
        return False
    return False


# -- reload -----------------------------------------------------------------------------------------------------------


def test_a_reload_under_load_brings_new_code_without_a_failed_request(service: Running) -> None:
    """SIGHUP replaces every worker; the supervisor stays and no request fails, not even the one that takes long."""
    with load(service.port) as seen, slow_request(service) as answers:
        before, mail, told = service.workers(), service.titled("mail worker"), len(service.said())
        wait_for(lambda: seen.answers > 50, "load")
        service.version.write_text("v2", encoding="utf-8")
        service.hang_up()
        wait_for(lambda: '"reloaded"' in service.said()[told:], "the new code has its workers", 10)
        wait_for(lambda: len(set(service.workers()) & set(before)) == 1, "the idle one of the old has left", 10)
        answered = seen.answers
        wait_for(lambda: seen.answers > answered + 50, "the last answers of the old ones are counted")
        seen.bodies.clear()
        wait_for(lambda: seen.answers > answered + 100, "load")
        assert all(body.endswith("v2") for body in seen.bodies)
    assert answers[0][0] == 200
    assert answers[0][1].endswith("v1")
    assert seen.failures == []
    wait_for(lambda: not set(service.titled("mail worker")) & set(mail), "the old mail worker ends")
    assert len(service.titled("mail worker")) == 1
    wait_for(lambda: len(service.titled("generation")) == 1 and len(service.workers()) == WORKERS, "the old ones end")
    service.version.write_text("v1", encoding="utf-8")


def test_a_reload_that_cannot_go_on_changes_nothing(service: Running) -> None:
    """Bad settings, code of another version, and code that does not start: one line each, and no failed request."""
    reasons = {"bad": "VESTIBULE_CODE_DIGITS", "newer": "restart the supervisor", "broken": "api ended with 1"}
    before = service.workers()
    with load(service.port, 2) as seen:
        for version, reason in reasons.items():
            told = len(service.said())
            service.version.write_text(version, encoding="utf-8")
            service.hang_up()
            wait_for(lambda told=told: "reload refused" in service.said()[told:], "the refusal")  # type: ignore[misc]  # mypy cannot infer it
            assert reason in service.said()[told:].partition("reload refused")[2].splitlines()[0]
        wait_for(lambda: len(service.titled("generation")) == 1, "what was started has ended")
        service.version.write_text("v1", encoding="utf-8")
    assert service.workers() == before
    assert seen.failures == []


def test_reloads_that_are_asked_for_during_a_reload_run_once_after_it(service: Running) -> None:
    """Three SIGHUP in a row are two reloads."""
    told = len(service.said())
    service.version.write_text("slow", encoding="utf-8")
    service.hang_up()
    wait_for(lambda: len(service.titled("api worker")) == 2 * WORKERS, "the new workers are being started")
    service.hang_up()
    service.hang_up()
    began = time.monotonic()
    wait_for(lambda: time.monotonic() - began > 0.4, "the signals have been read")
    service.version.write_text("v1", encoding="utf-8")
    wait_for(lambda: service.said()[told:].count('"reloaded"') == 2, "the second one")
    wait_for(lambda: len(service.titled("generation")) == 1, "all has settled")
    assert service.said()[told:].count("reload asked for") == 2


def test_a_reload_that_is_asked_for_during_the_start_is_done(tmp_path: Path) -> None:
    """SIGHUP before the workers are ready neither ends the start nor is lost."""
    (tmp_path / "version").write_text("slow", encoding="utf-8")
    with running(tmp_path, free_ports(1), ready=False) as service:
        wait_for(lambda: len(service.titled("api worker")) >= WORKERS, "the workers are being started")
        service.hang_up()
        wait_for(lambda: "reload asked for" in service.said(), "the reload begins")
        service.version.write_text("v1", encoding="utf-8")
        wait_for(lambda: '"reloaded"' in service.said() and "runs on" in service.said(), "it is done")
        assert service.get()[0] == 200


def test_a_generation_that_dies_during_a_reload_is_replaced_by_the_new_one(service: Running) -> None:
    """Kill -9 of the old generation while the new one starts: the new one is simply it."""
    told, (old,) = len(service.said()), service.titled("generation")
    service.version.write_text("slow", encoding="utf-8")
    service.hang_up()
    wait_for(lambda: len(service.titled("api worker")) == 2 * WORKERS, "the new workers are being started")
    send(old, signal.SIGKILL)
    service.version.write_text("v1", encoding="utf-8")
    wait_for(lambda: '"reloaded"' in service.said()[told:], "it goes on", 5.0)
    assert service.get()[0] == 200
    assert len(service.titled("generation")) == 1


def test_a_new_generation_that_is_killed_is_a_reload_that_failed(service: Running) -> None:
    """Kill -9 of the new generation: the old one goes on, and a later reload works."""
    told, old = len(service.said()), service.titled("generation")
    service.version.write_text("slow", encoding="utf-8")
    service.hang_up()
    wait_for(lambda: len(service.titled("api worker")) == 2 * WORKERS, "the new workers are being started")
    (new,) = set(service.titled("generation")) - set(old)
    send(new, signal.SIGKILL)
    wait_for(lambda: "reload refused" in service.said()[told:], "the refusal", 5.0)
    service.version.write_text("v1", encoding="utf-8")
    assert service.titled("generation") == old
    service.hang_up()
    wait_for(lambda: '"reloaded"' in service.said()[told:], "a later one")


@pytest.mark.parametrize("loop", ["uvloop", "trio"])
def test_recycling_under_load_fails_no_request(tmp_path: Path, loop: str) -> None:
    """Workers that have served MAX_REQUESTS are replaced again and again, and no client notices anything."""
    with running(tmp_path, free_ports(1), loop=loop, VESTIBULE_MAX_REQUESTS="60") as service:
        with load(service.port, 2, 0.001) as kept, load(service.port, 2, 0.001, kept=False) as new:
            bodies = kept.bodies, new.bodies
            wait_for(lambda: len({one.split()[0] for seen in bodies for one in set(seen)}) >= 12, "many workers", 60)
        assert kept.failures + new.failures == []


# -- stop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["uvloop", "asyncio", "trio"])
def test_a_stop_waits_for_the_request_that_was_accepted(tmp_path: Path, loop: str) -> None:
    """SIGTERM in the middle of a slow request: the listener is closed meanwhile, the answer arrives, exit code 0."""
    with running(tmp_path, free_ports(1), loop=loop) as service:
        with slow_request(service) as answers, socket.create_connection(("127.0.0.1", service.port)) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert idle.recv(4096)
            service.process.terminate()
            wait_for(lambda: refused(service), "the listener is closed", 1.5)
            assert not answers
        assert answers[0][0] == 200
        assert wait_for(lambda: service.process.poll() is not None, "the idle connection costs no grace") < 3.0
        assert service.process.returncode == 0
        assert service.said().count("drained ") == WORKERS


def test_the_service_answers_while_it_drains_and_readyz_says_no(tmp_path: Path) -> None:
    """During DRAIN_SECONDS new connections are served and /readyz answers 503; further signals change nothing."""
    with running(tmp_path, free_ports(1), VESTIBULE_DRAIN_SECONDS="2") as service:
        began = time.monotonic()
        service.process.send_signal(signal.SIGINT)
        wait_for(lambda: service.get("/readyz")[0] == 503, "not ready", 1.0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            service.process.send_signal(number)
        assert service.get()[0] == 200
        assert service.process.wait(10) == 0
        assert time.monotonic() - began >= 2
        assert "reload" not in service.said()


def test_what_does_not_end_is_killed_after_the_grace(tmp_path: Path) -> None:
    """A request without an end, and a mail worker that ignores SIGTERM: both are over after the grace, exit code 0."""
    one = running(tmp_path, free_ports(1), VESTIBULE_GRACE_SECONDS="1", STAND_IN_MAIL_WORKERS="1")
    with one as service, slow_request(service):
        service.version.write_text("stubborn", encoding="utf-8")
        service.process.terminate()
        assert service.process.wait(20) == 0
        killed = [line for line in service.said().splitlines() if '"killed"' in line]
        assert len(killed) == 1
        assert '"mail-1"' in killed[0]


def test_a_stop_before_the_workers_are_ready_is_an_orderly_one(tmp_path: Path) -> None:
    """Nothing is announced at an address that is closed; exit code 0."""
    (tmp_path / "version").write_text("slow", encoding="utf-8")
    with running(tmp_path, free_ports(1), ready=False) as service:
        wait_for(lambda: len(service.titled("api worker")) == WORKERS, "the workers are being started")
        service.process.terminate()
        wait_for(lambda: "stopping" in service.said(), "the order")
        service.version.write_text("v1", encoding="utf-8")
        assert service.process.wait(10) == 0
        assert "runs on" not in service.said()
        assert "Error" not in service.said()


@pytest.mark.parametrize("phase", ["plan", "generation"])
def test_a_stop_during_a_reload_stops_both(tmp_path: Path, phase: str) -> None:
    """SIGTERM while the settings are read, and with two generations: all that runs ends in order, exit code 0."""
    with running(tmp_path, free_ports(1), STAND_IN_MAIL_WORKERS="1") as service:
        if phase == "generation":
            service.version.write_text("slow", encoding="utf-8")
        service.hang_up()
        wait_for(lambda: "reload asked for" in service.said(), "the reload begins")
        if phase == "generation":
            wait_for(lambda: len(service.titled("api worker")) == 2 * WORKERS, "the new workers are being started")
        family = [child.pid for child in service.supervisor.children(recursive=True)]
        service.process.terminate()
        service.version.write_text("v1", encoding="utf-8")
        assert service.process.wait(10) == 0
        assert still_there(family, patience(1.0)) == []
        assert "WARNING" not in service.said()


def test_a_stop_behind_a_reload_ends_the_old_ones_too(tmp_path: Path) -> None:
    """SIGTERM while an old generation still has a request: the answer arrives, and all ends."""
    with running(tmp_path, free_ports(1)) as service:
        with slow_request(service) as answers:
            service.hang_up()
            wait_for(lambda: '"reloaded"' in service.said(), "the new ones")
            service.process.terminate()
            wait_for(lambda: refused(service), "the listener is closed", 2.0)
        assert answers[0][0] == 200
        assert service.process.wait(10) == 0


# -- terminal ---------------------------------------------------------------------------------------------------------


@contextmanager
def on_terminal(
    folder: Path, *before: str, ready: bool = True, drain: str = "0"
) -> Iterator[tuple[Running, Callable[[], None]]]:
    """Run the stand-in on a terminal of its own; give what closes the terminal, too."""
    ours, theirs = os.openpty()
    try:
        before = (*AT_TERMINAL, *before)
        settings = {"VESTIBULE_DRAIN_SECONDS": drain}
        with running(folder, free_ports(1), before=before, stdin=theirs, ready=ready, **settings) as service:
            os.close(theirs)
            yield service, lambda: os.close(ours)
    finally:
        with suppress(OSError):
            os.close(ours)


def test_a_terminal_that_is_closed_stops_the_service_in_order(tmp_path: Path) -> None:
    """SIGHUP is a reload as long as the terminal is there, and a stop as soon as it is gone; exit code 0."""
    with on_terminal(tmp_path) as (service, close):
        service.hang_up()
        wait_for(lambda: "reloaded" in service.said(), "SIGHUP is a reload")
        close()
        assert service.process.wait(10) == 0
        assert '"signal": "SIGHUP"' in service.said()
        assert service.said().count("drained ") == 2 * WORKERS


@pytest.mark.parametrize("state", ["starting", "reloading", "draining"])
def test_a_terminal_may_close_at_any_time(tmp_path: Path, state: str) -> None:
    """Closing the terminal leaves nothing either before the service is ready, during a reload, and during a stop."""
    version = tmp_path / "version"
    version.write_text("slow" if state == "starting" else "v1", encoding="utf-8")
    with on_terminal(tmp_path, ready=state != "starting", drain="1") as (service, close):
        if state == "draining":
            service.process.terminate()
            wait_for(lambda: "stopping" in service.said(), "it drains")
        else:
            version.write_text("slow", encoding="utf-8")
            if state == "reloading":
                service.hang_up()
            number = WORKERS if state == "starting" else 2 * WORKERS
            wait_for(lambda: len(service.titled("api worker")) == number, "the workers are being started")
        close()
        wait_for(lambda: "stopping" in service.said(), "the order to stop")
        version.write_text("v1", encoding="utf-8")
        assert service.process.wait(10) == 0
        assert service.said().count('"stopping"') == 1


def test_under_nohup_the_service_outlives_its_terminal(tmp_path: Path) -> None:
    """With SIGHUP ignored at the start the terminal may close, and SIGHUP is a reload still."""
    with on_terminal(tmp_path, "nohup") as (service, close):
        close()
        wait_for(lambda: "reloaded" in service.said(), "the kernel's SIGHUP is a reload")
        assert service.get()[0] == 200
        service.process.terminate()
        assert service.process.wait(10) == 0
