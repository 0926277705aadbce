from __future__ import annotations

import signal
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.faults.under_test import alive, load, running, wait_for
from tests.servers.ports import free_ports
from tests.servers.signals import send

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.under_test import Running

WORKERS = 2


@pytest.mark.parametrize("loop", ["uvloop", "asyncio", "trio"])
def test_a_stop_waits_for_the_request_that_was_accepted(tmp_path: Path, loop: str) -> None:
    """SIGTERM in the middle of a slow request: the listener is closed meanwhile, the answer arrives, exit code 0."""
    with running(tmp_path, free_ports(1), loop=loop) as service:
        with _slow_request(service) as answers:
            service.process.terminate()
            wait_for(lambda: _refused(service), "the listener is closed", 1.5)
            assert not answers
        assert answers[0][0] == 200
        assert service.process.wait(5) == 0
        assert service.said().count("drained ") == 2


def test_the_service_answers_while_it_drains_and_readyz_says_no(tmp_path: Path) -> None:
    """During DRAIN_SECONDS new connections are served, /readyz answers 503, and a second signal changes nothing."""
    with running(tmp_path, free_ports(1), VESTIBULE_DRAIN_SECONDS="2") as service:
        began = time.monotonic()
        service.process.send_signal(signal.SIGINT)
        wait_for(lambda: service.get("/readyz")[0] == 503, "not ready", 1.0)
        service.process.send_signal(signal.SIGINT)
        service.process.send_signal(signal.SIGTERM)
        assert service.get()[0] == 200
        assert service.process.wait(10) == 0
        assert time.monotonic() - began >= 2


def test_what_does_not_end_is_cut_at_the_end_of_the_grace(tmp_path: Path) -> None:
    """A request without an end, and a command that ignores SIGTERM: both are over after the grace, exit code 0."""
    with running(tmp_path, free_ports(1), "stubborn", VESTIBULE_GRACE_SECONDS="1") as service, _slow_request(service):
        service.process.terminate()
        assert service.process.wait(20) == 0
        assert '"child":"stubborn"' in service.said().partition('"killed"')[2].splitlines()[0]
        assert service.said().count('"killed"') == 1


def test_a_stop_just_before_the_workers_are_ready_is_an_orderly_one(tmp_path: Path) -> None:
    """Workers that get ready after the order to stop are not announced at an address that is closed."""
    (tmp_path / "version").write_text("slow", encoding="utf-8")
    with running(tmp_path, free_ports(1), ready=False) as service:
        wait_for(lambda: len(service.master.children()) == 2, "the workers are being started")
        service.process.terminate()
        wait_for(lambda: "stopping" in service.said(), "the order")
        service.version.write_text("v1", encoding="utf-8")
        assert service.process.wait(10) == 0
        assert service.said().count('"started"') == 2
        assert "ready http" not in service.said()
        assert "Error" not in service.said()


def test_a_reload_under_load_brings_new_code_without_a_failed_request(stand_in: Running) -> None:
    """SIGHUP replaces every worker, one by one; the pid of the master stays and no request fails."""
    with load(stand_in.port) as seen:
        before, told = stand_in.workers(), len(stand_in.said())
        wait_for(lambda: seen.answers > 50, "load")
        stand_in.version.write_text("v2", encoding="utf-8")
        stand_in.hang_up()
        wait_for(lambda: '"reloaded"' in stand_in.said()[told:], "the new code has its workers", 30)
        wait_for(lambda: not set(before) & set(stand_in.workers()), "the old workers have left", 10)
        assert len(stand_in.workers()) == WORKERS
        answered = seen.answers
        wait_for(lambda: seen.answers > answered + 50, "the last answers of the old ones are counted")
        seen.bodies.clear()
        wait_for(lambda: seen.answers > answered + 100, "load")
        assert all(body.endswith("v2") for body in seen.bodies)
        assert seen.failures == []
        assert stand_in.process.poll() is None
    stand_in.version.write_text("v1", encoding="utf-8")


@pytest.mark.parametrize("stand_in", ["uvloop"], indirect=True)
def test_a_reload_with_bad_settings_leaves_everything_as_it_was(stand_in: Running) -> None:
    """A setting that cannot be read costs one line in the log; the old workers go on."""
    before, told = stand_in.workers(), len(stand_in.said())
    cost = stand_in.folder / "cost"
    cost.write_text("99", encoding="utf-8")
    stand_in.hang_up()
    wait_for(lambda: "reload refused" in stand_in.said()[told:], "the refusal", 10)
    cost.write_text("12", encoding="utf-8")
    assert "VESTIBULE_BCRYPT_COST" in stand_in.said()[told:]
    assert stand_in.workers() == before
    assert stand_in.get()[0] == 200


@pytest.mark.parametrize("stand_in", ["uvloop"], indirect=True)
def test_settings_that_go_bad_after_their_trial_leave_everything_as_it_was(stand_in: Running) -> None:
    """The executed program says so once and tries again; the old workers go on until the settings can be read."""
    before, told = stand_in.workers(), len(stand_in.said())
    with _spoilt(stand_in.folder):
        stand_in.hang_up()
        wait_for(lambda: "the old workers go on" in stand_in.said()[told:], "the refusal", 10)
        assert stand_in.workers() == before
        assert stand_in.get()[0] == 200
        (stand_in.folder / "cost").write_text("98", encoding="utf-8")
    wait_for(lambda: '"reloaded"' in stand_in.said()[told:], "a later try", 20)
    wait_for(lambda: not set(before) & set(stand_in.workers()), "the old workers have left", 10)
    assert stand_in.said()[told:].count("the old workers go on") == 1
    assert stand_in.get()[0] == 200


def test_a_stop_is_an_orderly_one_while_settings_cannot_be_read(tmp_path: Path) -> None:
    """What was accepted is answered, workers drain, what does not end is killed, exit code 0."""
    cost = tmp_path / "cost"
    cost.write_text("12", encoding="utf-8")
    with running(tmp_path, free_ports(1), "sleeper", VESTIBULE_BCRYPT_COST_FILE=str(cost)) as service:
        with _spoilt(tmp_path):
            service.hang_up()
            wait_for(lambda: "the old workers go on" in service.said(), "the refusal", 10)
            with _slow_request(service) as answers:
                service.process.terminate()
                wait_for(lambda: _refused(service), "the listener is closed", 3.0)
            assert answers[0][0] == 200
            assert service.process.wait(10) == 0
        assert service.said().count("drained ") == 2
        assert '"child":"sleeper"' in service.said().rpartition('"ended"')[2]


def test_an_address_that_cannot_be_had_is_tried_again_at_the_next_reload(tmp_path: Path) -> None:
    """The old address stays in use meanwhile, and is not taken for the new one."""
    bind, port = tmp_path / "bind", free_ports(2)
    bind.write_text(f"127.0.0.1:{port}", encoding="utf-8")
    with running(tmp_path, port, VESTIBULE_BIND="", VESTIBULE_BIND_FILE=str(bind)) as service:
        bind.write_text(f"127.0.0.1:{port + 1}", encoding="utf-8")
        with socket.create_server(("127.0.0.1", port + 1)):
            service.hang_up()
            wait_for(lambda: "the old address stays" in service.said(), "the refusal")
            wait_for(lambda: '"reloaded"' in service.said(), "the first reload has settled")
            assert service.get()[0] == 200
        service.port = port + 1
        service.hang_up()
        wait_for(lambda: not _refused(service), "the new address")
        assert service.get()[0] == 200


def test_a_reload_follows_the_number_of_workers_and_the_address(tmp_path: Path) -> None:
    """More workers, fewer workers, another port: settings that come from files are read anew."""
    workers, bind, port = tmp_path / "workers", tmp_path / "bind", free_ports(2)
    workers.write_text("2", encoding="utf-8")
    bind.write_text(f"127.0.0.1:{port}", encoding="utf-8")
    with running(
        tmp_path,
        port,
        VESTIBULE_WORKERS="",
        VESTIBULE_WORKERS_FILE=str(workers),
        VESTIBULE_BIND="",
        VESTIBULE_BIND_FILE=str(bind),
    ) as service:
        workers.write_text("3", encoding="utf-8")
        service.hang_up()
        wait_for(lambda: len(service.workers()) == 3 and service.get()[0] == 200, "three workers")
        wait_for(lambda: "reloaded" in service.said(), "the first reload has settled")
        workers.write_text("1", encoding="utf-8")
        bind.write_text(f"127.0.0.1:{port + 1}", encoding="utf-8")
        service.hang_up()
        wait_for(lambda: service.said().count('"reloaded"') == 2, "the second reload has settled")
        wait_for(lambda: _refused(service), "the old worker leaves, and its address with it")
        service.port = port + 1
        wait_for(lambda: len(service.workers()) == 1, "one worker")
        assert service.get()[0] == 200


def test_a_reload_whose_new_workers_cannot_start_leaves_the_old_ones_in_service(tmp_path: Path) -> None:
    """New code that fails in the worker never takes the place of code that works."""
    with running(tmp_path, free_ports(1)) as service, load(service.port) as seen:
        before = service.workers()
        service.version.write_text("broken", encoding="utf-8")
        service.hang_up()
        wait_for(lambda: service.said().count('"fallen"') >= 3, "some tries", 20)
        assert set(before) <= set(service.workers())
        assert seen.failures == []


def test_a_reload_hands_over_nobody_who_has_ended(tmp_path: Path) -> None:
    """A worker that ends together with the trial is replaced, and nobody is waited for in vain at the stop."""
    with running(tmp_path, free_ports(1)) as service:
        before = {child.pid for child in service.master.children()}
        service.hang_up()
        wait_for(lambda: _others(service, before), "the trial", 5)
        (trial,) = _others(service, before)
        send(min(service.workers()), signal.SIGKILL)
        wait_for(lambda: _others(service, before | {trial}), "a worker that is younger than the trial", 5)
        (young,) = _others(service, before | {trial})
        service.process.send_signal(signal.SIGSTOP)
        send(young, signal.SIGKILL)
        wait_for(lambda: not alive(young) and not alive(trial), "both have ended")
        service.process.send_signal(signal.SIGCONT)
        wait_for(lambda: '"reloaded"' in service.said(), "the new code has its workers", 30)
        wait_for(lambda: len(service.workers()) == WORKERS, "the old workers have left", 10)
        service.process.terminate()
        assert service.process.wait(15) == 0


def _others(service: Running, known: set[int]) -> set[int]:
    """Return the master's children but those that are known."""
    return {child.pid for child in service.master.children()} - known


def test_signals_in_the_middle_of_a_reload_are_not_lost(tmp_path: Path) -> None:
    """Three SIGHUP and a SIGTERM in a row: the service stops in order, whatever the program was doing."""
    with running(tmp_path, free_ports(1)) as service:
        for _ in range(3):
            service.hang_up()
        wait_for(lambda: "reload asked for" in service.said(), "the reload begins")
        service.process.terminate()
        assert service.process.wait(20) == 0


@pytest.mark.parametrize("loop", ["uvloop", "trio"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept alive", "new connections"])
def test_recycling_under_load_fails_no_request(tmp_path: Path, loop: str, *, kept: bool) -> None:
    """Workers that have served MAX_REQUESTS are replaced again and again, and no client notices anything."""
    with running(tmp_path, free_ports(1), loop=loop, VESTIBULE_MAX_REQUESTS="60") as service:
        with load(service.port, pause=0.001, kept=kept) as seen:
            wait_for(lambda: len({body.split()[0] for body in seen.bodies}) >= 15, "many workers", 60)
        assert seen.failures == []


@contextmanager
def _spoilt(folder: Path) -> Iterator[None]:
    """Have settings go bad between each trial and what follows it, while the body runs; they are good at its end."""
    spoil, cost = folder / "spoil", folder / "cost"
    spoil.touch()
    yield
    spoil.unlink()
    cost.write_text("12", encoding="utf-8")


@contextmanager
def _slow_request(service: Running) -> Iterator[list[tuple[int, str]]]:
    """Hold a request while the body runs; its answer, if there is one, is in the list afterwards."""
    answers: list[tuple[int, str]] = []
    asker = threading.Thread(target=lambda: answers.append(service.get("/slow")))
    asker.start()
    service.asked()
    yield answers
    (service.folder / "go").touch()
    asker.join()


def _refused(service: Running) -> bool:
    try:
        service.get()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
