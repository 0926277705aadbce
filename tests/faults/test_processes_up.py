from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import psutil
import pytest

from service.processes.spawn import command
from tests.e2e.instance import running
from tests.faults.under_test import load
from tests.servers.ports import free_ports
from tests.servers.processes import kill, send, still_there
from tests.servers.waiting import ROLES, child, patience, titled, wait_for

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
    return subprocess.run(
        command(*words), env=environment(up, **settings), capture_output=True, text=True, timeout=20, check=False
    )


def environment(up: Instance, **settings: str) -> dict[str, str]:
    """Return the environment for a command beside it."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
    return plain | {f"VESTIBULE_{name}": value for name, value in (up.settings | settings).items()}


def test_the_supervisor_is_small(up: Instance) -> None:
    """It imports the standard library only, and stays under 20 MB."""
    assert psutil.Process(up.process.pid).memory_full_info().pss < 20 * 2**20
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, service.processes.supervisor; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    ours = [name for name in loaded if name.startswith(("service.", "actors."))]
    assert all(name.startswith("service.processes") for name in ours)
    assert not {"click", "loguru", "anyio", "pydantic", "asyncio", "subprocess"} & set(loaded)


def test_what_is_killed_is_back_within_five_seconds(up: Instance) -> None:
    """Kill -9 of each server and of the mail worker in turn: another takes its place and the service is ready again."""
    for role in ROLES:
        old = child(up.process.pid, role)
        send(old, signal.SIGKILL)
        wait_for(partial(_back, up, role, old), f"{role} is back", 5.0)


def test_a_generation_that_shows_no_life_is_replaced(up: Instance) -> None:
    """SIGSTOP of the generation: it is killed after some seconds, and all is well again."""
    old = titled(up.process.pid, "generation")
    for pid in old:
        send(pid, signal.SIGSTOP)
    assert still_there(old, patience(11.0)) == []
    wait_for(up.ready, "it is ready again", 5.0)


def test_reload_renews_the_workers_and_leaves_the_servers_alone(up: Instance) -> None:
    """`vestibule reload` replaces API and mail workers within 4 s, without a failed request."""
    pid = up.process.pid
    servers = [child(pid, role) for role in SERVERS]
    old = {*titled(pid, "api worker"), *titled(pid, "mail worker")}
    began = time.monotonic()
    assert run(up, "reload").returncode == 0
    assert time.monotonic() - began < patience(4.0)
    asked = time.monotonic()
    with load(up.port, 1, 0.05) as seen:
        wait_for(lambda: '"reloaded"' in up.said(), "new workers", 4.0)
        assert time.monotonic() - asked < patience(4.0)
        wait_for(lambda: len({*titled(pid, "api worker"), *titled(pid, "mail worker")} - old) == 3, "new ones", 1.0)
        wait_for(lambda: not old & {*titled(pid, "api worker"), *titled(pid, "mail worker")}, "the old ones end", 10.0)
    assert seen.failures == []
    assert [child(pid, role) for role in SERVERS] == servers


def test_other_commands_join_a_running_up_and_a_second_up_is_refused(up: Instance) -> None:
    """Migrations and API workers find the servers of the `up` in DATA_DIR; another `up` there ends with one line."""
    port = free_ports(1)
    second = run(up, "up", BIND=f"127.0.0.1:{port}")
    assert (second.returncode, second.stderr.count("\n")) == (1, 1)
    assert "in use by another" in second.stderr
    assert run(up, "migrate").stdout == "nothing to do\n"
    guest = subprocess.Popen(
        command("serve"),
        env=environment(up, BIND=f"127.0.0.1:{port}"),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert guest.stdout is not None
        assert any(b"runs on" in line for line in guest.stdout)
        assert int((up.data_dir / "vestibule.pid").read_text(encoding="ascii")) == up.process.pid
        guest.terminate()
        guest.communicate(timeout=15)
        assert guest.returncode == 0
    finally:
        kill(guest)
    assert up.ready()


def test_a_lone_worker_is_reloaded_by_sighup(up: Instance) -> None:
    """SIGHUP starts another mail worker beside it, which ends once the new one is ready; SIGTERM ends all."""
    output = up.data_dir / "worker.log"
    with output.open("wb") as sink:
        lone = subprocess.Popen(command("worker"), env=environment(up), stdout=sink, stderr=sink)
    try:
        wait_for(lambda: "mail worker started" in output.read_text(), "it delivers")
        (old,) = titled(lone.pid, "mail worker")
        send(lone.pid, signal.SIGHUP)
        wait_for(lambda: '"reloaded"' in output.read_text(), "the new one", 10.0)
        wait_for(lambda: old not in titled(lone.pid, "mail worker"), "the old one ends", 5.0)
        assert len(titled(lone.pid, "mail worker")) == 1
        lone.terminate()
        assert lone.wait(10) == 0
    finally:
        kill(lone)


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
        assert one.process.wait(15) == 0
        assert still_there(family, 0.5) == []
        ended = re.findall(r'"ended".*?"child": "([a-z]+)[-0-9]*".*"code": 0', one.said())
        assert ended == ["api", "mail", "mail", "catcher", "valkey", "postgres"]
        assert (one.data_dir / "vestibule.pid").read_bytes() == b""
    with suppress(AssertionError), running(tmp_path, "uvloop", {}) as again:
        family = [process.pid for process in psutil.Process(again.process.pid).children(recursive=True)]
        send(again.process.pid, signal.SIGKILL)
        left = still_there(family, patience(5.0))
    assert left == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_the_start_ends_it_without_a_trace(tmp_path: Path, number: signal.Signals) -> None:
    """No process and no traceback is left."""
    output = tmp_path / "output"
    settings = {"VESTIBULE_DATA_DIR": str(tmp_path / "d"), "VESTIBULE_BIND": f"127.0.0.1:{free_ports(1)}"}
    with output.open("wb") as sink:
        process = subprocess.Popen(command("up"), env=os.environ | settings, stdout=sink, stderr=sink)
    wait_for((tmp_path / "d" / "postgres.lock").exists, "the first server is being started")
    family = [one.pid for one in psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(number)
    assert process.wait(20) == 0
    assert still_there(family, patience(5.0)) == []
    assert "Traceback" not in output.read_text(encoding="utf-8")


def _back(up: Instance, role: str, old: int) -> bool:
    return child(up.process.pid, role) not in {0, old} and up.ready()
