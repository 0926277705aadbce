from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.hostile.raw import LIVEZ, get, talk
from tests.faults.outage import load
from tests.faults.under_test import WORKERS, Asker, failures, running
from tests.servers.processes import send, still_there
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.under_test import Running

AT_TERMINAL = [sys.executable, str(Path(__file__).with_name("at_terminal.py"))]
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "trio"])
REASONS = {"bad": "VESTIBULE_CODE_DIGITS", "newer": "restart the supervisor", "broken": "api ended with 1"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Give a stand-in with two API workers and a mail worker; a test heals what it hurts."""
    with running(tmp_path_factory.mktemp("p"), MAIL_WORKERS="1") as one:
        yield one
        one.stops()


def go(service: Running) -> None:
    """Let the slow requests be answered."""
    service.folder.joinpath("go").touch()


def refused(service: Running) -> bool:
    """Return whether nothing listens at the address."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", service.port)) != 0


# -- reload -----------------------------------------------------------------------------------------------------------


@LOOPS
def test_a_reload_under_load_brings_new_code_without_a_failed_request(tmp_path: Path, loop: str) -> None:
    """SIGHUP replaces every worker; the supervisor stays and no request fails, not even the one that takes long."""
    with running(tmp_path, LOOP=loop, MAIL_WORKERS="1") as service:
        before, mail = service.workers(), service.titled("mail worker")
        with load([Asker(service.port) for _ in range(4)], 0.005) as seen, talk(service.port, get("/slow")) as slow:
            service.says("\nslow ")
            wait_for(lambda: len(seen) > 50, "load")
            service.becomes("v2")
            service.hang_up()
            service.says('"reloaded"')
            wait_for(lambda: len(set(service.workers()) & set(before)) == 1, "the idle one of the old has left", 10)
            answered = len(seen) + 50  # until then the last answers of the old ones are counted
            wait_for(lambda: len(seen) > answered + 50, "load")
            go(service)
            assert slow.hear().body.endswith(b"v1")
        assert all(body.endswith("v2") for body in seen[answered:])
        assert failures(seen) == []
        wait_for(lambda: not set(service.titled("mail worker")) & set(mail), "the old mail worker ends")
        assert len(service.titled("mail worker")) == 1
        service.settles()
        service.stops()


def test_a_reload_that_cannot_go_on_changes_nothing(service: Running) -> None:
    """Bad settings, code of another version, and code that does not start: one line each, and no failed request."""
    before = service.workers()
    with load([Asker(service.port)], 0.005) as seen:
        for version, reason in REASONS.items():
            since = len(service.said())
            service.becomes(version)
            service.hang_up()
            service.says("reload refused", since)
            assert reason in service.said(since).partition("reload refused")[2].splitlines()[0]
        service.becomes("v1")
        service.settles()
    assert service.workers() == before
    assert failures(seen) == []


def test_reloads_that_are_asked_for_during_a_reload_run_once_after_it(service: Running) -> None:
    """Three SIGHUP in a row are two reloads."""
    since = len(service.said())
    service.becomes("slow")
    service.hang_up()
    service.starts_workers(2 * WORKERS)
    service.hang_up()
    service.hang_up()
    wait_for(lambda: not pending(service, signal.SIGHUP), "the signals have been taken")
    service.becomes("v1")
    wait_for(lambda: service.said(since).count('"reloaded"') == 2, "the second one")
    service.settles()
    assert service.said(since).count("reload asked for") == 2


def pending(service: Running, number: signal.Signals) -> bool:
    """Return whether the supervisor has yet to take a signal."""
    status = Path(f"/proc/{service.process.pid}/status").read_text(encoding="ascii")
    masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


@pytest.mark.parametrize("victim", ["old", "new"])
def test_a_generation_may_die_during_a_reload(service: Running, victim: str) -> None:
    """Without the old one the new one is simply it; without the new one the old goes on, and a later reload works."""
    since, old = len(service.said()), service.titled("generation")
    service.becomes("slow")
    service.hang_up()
    service.starts_workers(2 * WORKERS)
    [new] = set(service.titled("generation")) - set(old)
    send(old[0] if victim == "old" else new, signal.SIGKILL)
    if victim == "new":
        service.says("reload refused", since, 5.0)
        assert service.titled("generation") == old
    service.becomes("v1")
    if victim == "new":
        service.hang_up()
    service.says('"reloaded"', since)
    service.settles()


@LOOPS
def test_recycling_under_load_fails_no_request(tmp_path: Path, loop: str) -> None:
    """Workers that have served MAX_REQUESTS are replaced again and again, and no client notices anything."""
    with running(tmp_path, LOOP=loop, MAX_REQUESTS="60") as service:
        askers = [Asker(service.port, kept=kept) for kept in (True, True, False, False)]
        with load(askers, 0.001) as seen:
            wait_for(lambda: len({one.split()[0] for one in list(seen)}) >= 8, "many workers", 60)
        assert failures(seen) == []


# -- stop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["uvloop", "asyncio", "trio"])
def test_a_stop_waits_for_the_request_that_was_accepted(tmp_path: Path, loop: str) -> None:
    """SIGTERM in the middle of a slow request: the listener is closed meanwhile, the answer arrives, exit code 0."""
    with (
        running(tmp_path, LOOP=loop, GRACE_SECONDS="60") as service,
        talk(service.port, get("/slow")) as slow,
        talk(service.port, LIVEZ) as idle,
    ):
        assert idle.hear().status == 200
        service.says("\nslow ")
        service.process.terminate()
        wait_for(lambda: refused(service), "the listener is closed", 2.0)
        go(service)
        assert slow.hear().status == 200
        assert service.process.wait(20) == 0, "the idle connection costs no grace"
        assert service.said().count("drained ") == WORKERS


def test_the_service_answers_while_it_drains_and_readyz_says_no(tmp_path: Path) -> None:
    """During DRAIN_SECONDS new connections are served and /readyz answers 503; further signals change nothing."""
    with running(tmp_path, DRAIN_SECONDS="2") as service:
        service.process.send_signal(signal.SIGINT)
        drained = wait_for(lambda: service.get("/readyz")[0] == 503, "not ready", 1.0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            service.process.send_signal(number)
        assert service.get()[0] == 200
        drained += wait_for(lambda: service.process.poll() is not None, "the end", 10.0)
        assert service.process.returncode == 0
        assert drained > 1.5
        assert "reload" not in service.said()


def test_what_does_not_end_is_killed_after_the_grace(tmp_path: Path) -> None:
    """A request without an end, and a mail worker that ignores SIGTERM: both are over after the grace, exit code 0."""
    with (
        running(tmp_path, GRACE_SECONDS="1", MAIL_WORKERS="1") as service,
        talk(service.port, get("/slow")),
    ):
        service.says("\nslow ")
        service.becomes("stubborn")
        service.process.terminate()
        assert service.process.wait(20) == 0
        [killed] = [line for line in service.said().splitlines() if '"killed"' in line]
        assert '"mail-1"' in killed


# -- state and signal -------------------------------------------------------------------------------------------------


def starting(service: Running) -> None:
    """Wait for workers that are not ready."""
    service.starts_workers(WORKERS)


def reading(service: Running) -> None:
    """Ask for a reload, whose settings are being read."""
    service.hang_up()
    service.says("reload asked for")


def reloading(service: Running) -> None:
    """Ask for a reload, whose workers do not get ready."""
    service.becomes("slow")
    service.hang_up()
    service.starts_workers(2 * WORKERS)


def draining(service: Running) -> None:
    """Ask for a stop."""
    service.process.terminate()
    service.says('"stopping"')


@contextmanager
def on_terminal(folder: Path, *before: str, **options: str) -> Iterator[tuple[Running, Callable[[], None]]]:
    """Run the stand-in on a terminal of its own, `starting` or ready; give what closes the terminal, too."""
    ours, theirs = os.openpty()
    version = options.pop("version", "v1")
    try:
        command = (*AT_TERMINAL, *before)
        with running(
            folder, version=version, ready=version != "slow", before=command, stdin=theirs, MAIL_WORKERS="1", **options
        ) as service:
            os.close(theirs)
            yield service, lambda: os.close(ours)
    finally:
        with suppress(OSError):
            os.close(ours)


@pytest.mark.parametrize("how", ["SIGTERM", "terminal closed"])
@pytest.mark.parametrize("state", [starting, reading, reloading, draining])
def test_a_stop_at_any_time_is_an_orderly_one(tmp_path: Path, state: Callable[[Running], None], how: str) -> None:
    """Nothing is left, nothing is announced at an address that is closed, nothing is stopped twice; exit code 0."""
    options = {"version": "slow"} if state is starting else {"DRAIN_SECONDS": "1" if state is draining else "0"}
    with on_terminal(tmp_path, **options) as (service, close):
        state(service)
        family = [child.pid for child in service.supervisor.children(recursive=True)]
        if how == "SIGTERM":
            service.process.terminate()
        else:
            close()
        service.says('"stopping"')
        service.becomes("v1")
        assert service.process.wait(20) == 0
        assert still_there(family, patience(1.0)) == []
        said = service.said()
        assert [word for word in ("WARNING", "Error", "Traceback") if word in said] == []
        assert ("runs on" in said) == (state is not starting)
        assert said.count('"stopping"') == 1


def test_a_reload_that_is_asked_for_during_the_start_is_done(tmp_path: Path) -> None:
    """SIGHUP before the workers are ready neither ends the start nor is lost."""
    with running(tmp_path, version="slow", ready=False) as service:
        starting(service)
        reading(service)
        service.becomes("v1")
        service.says('"reloaded"')
        service.says("runs on")
        service.settles()


def test_a_stop_behind_a_reload_ends_the_old_ones_too(tmp_path: Path) -> None:
    """SIGTERM while an old generation still has a request: the answer arrives, and all ends."""
    with running(tmp_path) as service, talk(service.port, get("/slow")) as slow:
        service.says("\nslow ")
        service.hang_up()
        service.says('"reloaded"')
        service.process.terminate()
        wait_for(lambda: refused(service), "the listener is closed", 2.0)
        go(service)
        assert slow.hear().status == 200
        assert service.process.wait(20) == 0


@pytest.mark.parametrize("before", [(), ("nohup",)])
def test_sighup_is_a_reload_but_for_the_terminals_own(tmp_path: Path, before: tuple[str, ...]) -> None:
    """As long as the terminal is there, and under nohup always; the loss of a terminal is a stop in order."""
    with on_terminal(tmp_path, *before) as (service, close):
        if not before:
            service.hang_up()
            service.says('"reloaded"')
        close()
        if before:
            service.says('"reloaded"')
            service.settles()
            service.process.terminate()
        assert service.process.wait(20) == 0
        assert ('"signal": "SIGHUP"' in service.said()) == (not before)
        assert service.said().count("drained ") == 2 * WORKERS
