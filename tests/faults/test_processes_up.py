from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from service.processes.spawn import command
from tests.e2e.instance import COMMAND, HOST, environment, launched, running
from tests.faults.clients import Clients
from tests.faults.outage import load
from tests.servers.ports import free_ports
from tests.servers.processes import send, still_there
from tests.servers.waiting import child, patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.instance import Instance

SERVERS = ("postgres", "redis", "catcher")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """Give a `vestibule up`; a test heals what it hurts, and SIGTERM must still end it in order."""
    with running(tmp_path_factory.mktemp("u"), "uvloop", {}) as one:
        yield one


def run(up: Instance, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run another command in the same DATA_DIR."""
    variables = environment(up.settings | settings)
    return subprocess.run(command(*words), env=variables, capture_output=True, text=True, timeout=60, check=False)


def workers(up: Instance) -> set[int]:
    """Return the pids of its API and mail workers."""
    return {*up.titled("api worker"), *up.titled("mail worker")}


def test_the_supervisor_is_small(up: Instance) -> None:
    """It imports the standard library only, and stays under 20 MB."""
    assert psutil.Process(up.process.pid).memory_full_info().pss < 20 * 2**20
    listing = [sys.executable, "-c", "import sys, service.processes.supervisor; print(*sys.modules)"]
    loaded = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()
    ours = [name for name in loaded if name.startswith(("service.", "actors."))]
    assert all(name.startswith("service.processes") for name in ours)
    assert not {"click", "loguru", "anyio", "pydantic", "asyncio", "subprocess"} & set(loaded)


def test_what_is_killed_is_back_within_five_seconds(up: Instance) -> None:
    """Kill -9 of each server and of the mail worker: another takes its place and the service is ready again."""
    for role in (*SERVERS, "mail worker"):
        old = up.child(role)
        send(old, signal.SIGKILL)
        wait_for(lambda: up.child(role) not in {0, old} and up.ready(), f"{role} is back", 5.0)  # noqa: B023 - waits here


def test_reload_renews_the_workers_and_leaves_the_servers_alone(up: Instance) -> None:
    """`vestibule reload` replaces API and mail workers, without a failed request."""
    servers, old = [up.child(role) for role in SERVERS], workers(up)
    clients = Clients(up.port)
    assert run(up, "reload").returncode == 0
    with load([lambda: clients.ask("GET", "/livez")], 0.05) as seen:
        wait_for(lambda: '"reloaded"' in up.said(), "new workers")
        wait_for(lambda: len(workers(up)) == 3 and not workers(up) & old, "the old ones end", 10.0)
    assert {answer.status for answer in seen} == {200}
    assert [up.child(role) for role in SERVERS] == servers


@pytest.mark.slow  # runs with no other test beside it: the promise is for an idle machine
def test_an_idle_reload_takes_four_seconds_at_most(up: Instance) -> None:
    """From the order until the new generation is ready."""
    before = up.said().count('"reloaded"')
    assert run(up, "reload").returncode == 0
    wait_for(lambda: up.said().count('"reloaded"') > before, "new workers", 4.0)


def test_other_commands_join_a_running_up_and_a_second_up_is_refused(up: Instance, tmp_path: Path) -> None:
    """Migrations and API workers find the servers of the `up` in DATA_DIR; another `up` there ends with one line."""
    other = {"BIND": f"{HOST}:{free_ports()}"}
    second = run(up, "up", **other)
    assert (second.returncode, second.stderr.count("\n")) == (1, 1)
    assert "in use by another" in second.stderr
    assert run(up, "migrate").stdout == "nothing to do\n"
    output = tmp_path / "guest"
    with launched(command("serve"), environment(up.settings | other), output) as guest:
        wait_for(lambda: "runs on" in output.read_text(), "it serves")
        assert int((up.data_dir / "vestibule.pid").read_text(encoding="ascii")) == up.process.pid
        guest.terminate()
        assert guest.wait(20) == 0
    assert up.ready()


def test_a_lone_worker_is_reloaded_by_sighup(up: Instance, tmp_path: Path) -> None:
    """SIGHUP starts another mail worker beside it, which ends once the new one is ready; SIGTERM ends all."""
    output = tmp_path / "worker"
    with launched(command("worker"), environment(up.settings), output) as lone:
        wait_for(lambda: "mail worker started" in output.read_text(), "it delivers")
        family = psutil.Process(lone.pid)
        [old] = family.children()
        send(lone.pid, signal.SIGHUP)
        wait_for(lambda: '"reloaded"' in output.read_text(), "the new one", 10.0)
        wait_for(lambda: old not in family.children() and len(family.children()) == 1, "the old one ends", 5.0)
        lone.terminate()
        assert lone.wait(20) == 0


def test_bad_settings_end_the_start_with_one_line(up: Instance) -> None:
    """They have an exit code of their own."""
    refused = run(up, "up", CODE_DIGITS="99")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "VESTIBULE_CODE_DIGITS" in refused.stderr


def test_a_stop_is_orderly_and_the_next_start_works(tmp_path: Path) -> None:
    """Ctrl-C ends API, mail, catcher, Redis, Postgres in that order with code 0; kill -9 leaves nothing either."""
    with running(tmp_path, "trio", {"MAIL_WORKERS": "2"}) as one:
        family = [process.pid for process in psutil.Process(one.process.pid).children(recursive=True)]
        os.killpg(one.process.pid, signal.SIGINT)
        assert one.process.wait(patience(15)) == 0
        assert still_there(family, 0.5) == []
        ended = re.findall(r'"ended".*?"child": "([a-z]+)[-0-9]*".*"code": 0', one.said())
        assert ended == ["api", "mail", "mail", "catcher", "valkey", "postgres"]
        assert (one.data_dir / "vestibule.pid").read_bytes() == b""
    output = tmp_path / "again"
    with launched(COMMAND, environment(one.settings), output) as again:
        wait_for(lambda: "runs on" in output.read_text(), "it starts again")
        family = [process.pid for process in psutil.Process(again.pid).children(recursive=True)]
        send(again.pid, signal.SIGKILL)
        assert still_there(family, patience(5.0)) == []


@pytest.mark.parametrize("moment", ["begun", "locked"])
def test_a_signal_in_the_middle_of_the_start_ends_it_without_a_trace(tmp_path: Path, moment: str) -> None:
    """No process and no traceback is left, whether the first server has just begun or is making its files."""
    output, data_dir = tmp_path / "output", tmp_path / "d"
    settings = {"DATA_DIR": str(data_dir), "BIND": f"{HOST}:{free_ports()}"}
    with launched(command("up"), environment(settings), output) as process:
        supervisor = psutil.Process(process.pid)

        def reached() -> bool:
            if moment == "begun":
                return child(process.pid, "postgres, still in Python") != 0
            return (data_dir / "postgres.lock").exists()

        wait_for(reached, "the first server is being started")
        family = [one.pid for one in supervisor.children(recursive=True)]
        process.send_signal(signal.SIGINT)
        assert process.wait(patience(20)) == 0
        assert still_there(family, patience(5.0)) == []
        assert "Traceback" not in output.read_text(encoding="utf-8")
