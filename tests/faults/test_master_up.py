from __future__ import annotations

import fcntl
import http.client
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest

from service.servers import resolve
from service.settings import Settings
from tests.faults.under_test import alive, patience, wait_for
from tests.servers.own_postgres import OwnPostgres
from tests.servers.ports import free_ports
from tests.servers.signals import send

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ENDED = re.compile(r'"ended".*"child":"([a-z]+).*"code":(-?\d+)')
OTHER_CODE = """
import os, sys
from pathlib import Path
os.environ.update(line.split("=", 1) for line in Path(sys.argv.pop(1)).read_text().splitlines())
from service.cli import main
raise SystemExit(main())  # vestibule up
"""
ROLES = {
    "postgres": re.compile(r"/bin/postgres "),
    "redis": re.compile(r"valkey|redis-server"),
    "catcher": re.compile(r"mail_catcher"),
    "mail worker": re.compile(r"vestibule worker"),
}


def command(*words: str) -> list[str]:
    """Return the command line of the console command."""
    return [sys.executable, str(Path(sys.executable).with_name("vestibule")), *words]


def environment(data_dir: Path, port: int) -> dict[str, str]:
    """Return the settings of one `up`, and no others."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
    own = {"DATA_DIR": str(data_dir), "BIND": f"127.0.0.1:{port}", "BCRYPT_COST": "4", "ALLOW_WEAK_HASH": "1"}
    return plain | {f"VESTIBULE_{name}": value for name, value in {**own, "WORKERS": "2"}.items()}


@dataclass
class Up:
    """A running `vestibule up`."""

    data_dir: Path
    port: int
    process: subprocess.Popen[bytes]
    output: Path

    def child(self, role: str) -> int:
        """Return the pid of the master's child that plays this role, 0 if there is none."""
        found = (one.pid for one in self.children() if ROLES[role].search(" ".join(_words(one)) + " "))
        return next(found, 0)

    def children(self) -> list[psutil.Process]:
        """Return the master's children."""
        return psutil.Process(self.process.pid).children()

    def workers(self) -> set[int]:
        """Return the pids of the API workers."""
        return {one.pid for one in self.children() if "vestibule up" in " ".join(_words(one))}

    def mail_workers(self) -> set[int]:
        """Return the pids of the mail workers."""
        return {one.pid for one in self.children() if "vestibule worker" in " ".join(_words(one))}

    def ready(self) -> bool:
        """Return whether /readyz answers 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def run(self, *words: str, port: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run another command in the same DATA_DIR."""
        settings = environment(self.data_dir, port or self.port)
        return subprocess.run(command(*words), env=settings, capture_output=True, text=True, timeout=20, check=False)


@contextmanager
def up(data_dir: Path, port: int, program: Sequence[str] = ()) -> Iterator[Up]:
    """Run `vestibule up`, ready at the beginning of the body; nothing of it is left afterwards.

    `program` is another command line that does the same.
    """
    data_dir.mkdir(exist_ok=True)
    output = data_dir / "output"
    with output.open("wb") as sink:
        settings = environment(data_dir, port)
        process = subprocess.Popen(program or command("up"), env=settings, stdout=sink, stderr=sink)
    one = Up(data_dir, port, process, output)
    try:
        wait_for(lambda: one.ready() or process.poll() is not None, "it is ready", 30)
        assert process.poll() is None, output.read_text(encoding="utf-8")
        wait_for(lambda: "runs on" in output.read_text(encoding="utf-8"), "it says so")
        yield one
    finally:
        family = [psutil.Process(process.pid), *one.children()] if process.poll() is None else []
        for member in family:
            if member.is_running():
                member.kill()
        process.wait(10)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Give an `up`; a test heals what it hurts, and Ctrl-C must still end it in order."""
    with up(tmp_path_factory.mktemp("up"), free_ports(1)) as running:
        yield running
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(15) == 0


def test_it_says_that_it_runs_when_everything_does(one: Up) -> None:
    """Whoever reads the address can sign up at once: the servers, the API and the mail worker are ready before it."""
    before = one.output.read_text(encoding="utf-8").partition("runs on")[0]
    started = re.findall(r'"started".*?"child":"([a-z0-9-]+)"', before)
    assert sorted(started) == ["api-1", "api-2", "catcher", "mail-1", "postgres", "valkey"]


def test_servers_and_workers_that_are_killed_are_back_within_five_seconds(one: Up) -> None:
    """Kill -9 of each child in turn: another takes its place and the service is ready again."""
    for role in ROLES:
        old = one.child(role)
        assert old, role
        send(old, signal.SIGKILL)
        wait_for(partial(_back, one, role, old), f"{role} is back", 5.0)


def test_what_is_stopped_without_dying_is_replaced(one: Up) -> None:
    """SIGSTOP of the mail worker and of each server: they are killed after some seconds, and all is well again."""
    old = {role: one.child(role) for role in ROLES}
    wait_for(lambda: f'"pid":{old["mail worker"]}}}' in one.output.read_text(encoding="utf-8"), "it has started")
    for pid in old.values():
        send(pid, signal.SIGSTOP)
    wait_for(lambda: all(one.child(role) not in {0, old[role]} for role in ROLES) and one.ready(), "all are back", 15.0)
    assert one.output.read_text(encoding="utf-8").count('"reason":"silent"') == len(ROLES)


def test_a_server_that_cannot_start_yet_holds_nobody_up(one: Up) -> None:
    """The remains of a killed server are in its way for a while: a worker that is killed meanwhile is back in 2 s."""
    postgres, worker = one.child("postgres"), min(one.workers())
    with _suspended(one.process.pid), (one.data_dir / "postgres.lock").open("rb+") as lock:
        send(postgres, signal.SIGKILL)
        wait_for(lambda: _locked(lock.fileno()), "its last process is gone")
        send(worker, signal.SIGKILL)
        send(one.process.pid, signal.SIGCONT)
        wait_for(lambda: worker not in one.workers() and len(one.workers()) == 2, "another worker", 2.0)
        began = time.monotonic()
        wait_for(lambda: time.monotonic() - began > 1.0, "the lock is held for a while")
        assert not one.child("postgres")
    wait_for(lambda: one.child("postgres") and one.ready(), "PostgreSQL is back", 5.0)


def test_a_stop_is_orderly_and_the_next_start_takes_less_than_five_seconds(tmp_path: Path) -> None:
    """SIGTERM ends API, mail, Redis, Postgres in that order with code 0 and leaves no file that speaks of a master."""
    port = free_ports(1)
    with up(tmp_path, port) as one:
        family = [child.pid for child in psutil.Process(one.process.pid).children(recursive=True)]
        one.process.terminate()
        assert one.process.wait(15) == 0
        assert not any(alive(pid) for pid in family)
        ended = re.findall(r'"ended".*?"child":"([a-z]+)', one.output.read_text(encoding="utf-8"))
        assert list(dict.fromkeys(ended)) == ["api", "mail", "catcher", "valkey", "postgres"]
        assert not (tmp_path / "vestibule.pid").exists()
        assert not (tmp_path / "servers.json").exists()
    began = time.monotonic()
    with up(tmp_path, port):
        assert time.monotonic() - began < patience(5.0)


def test_nothing_survives_a_killed_master_and_the_next_start_works(tmp_path: Path) -> None:
    """Kill -9 of the master takes everything with it within 5 s, and leaves nothing that is in the way."""
    port = free_ports(1)
    with up(tmp_path, port) as one:
        family = [child.pid for child in psutil.Process(one.process.pid).children(recursive=True)]
        send(one.process.pid, signal.SIGKILL)
        one.process.wait(5)
        wait_for(lambda: not any(alive(pid) for pid in family), "all are gone", 5.0)
    with up(tmp_path, port) as again:
        assert again.ready()


def test_reload_renews_the_workers_and_leaves_the_servers_alone(one: Up) -> None:
    """`vestibule reload` replaces API and mail workers under the same master, and the service is ready throughout."""
    workers, mail = one.workers(), one.child("mail worker")
    servers = [one.child(role) for role in ("postgres", "redis", "catcher")]
    asked = one.run("reload")
    assert asked.returncode == 0, asked.stderr
    wait_for(lambda: one.ready() and not workers & one.workers() and len(one.workers()) == 2, "new workers", 30)
    wait_for(lambda: mail not in one.mail_workers() and len(one.mail_workers()) == 1, "a new mail worker", 20)
    assert [one.child(role) for role in ("postgres", "redis", "catcher")] == servers


def test_a_reload_that_cannot_go_on_keeps_all_at_work_and_a_stop_meanwhile_is_an_orderly_one(tmp_path: Path) -> None:
    """Nothing is replaced while there is no room for `servers.json`; then all end, API first and the database last."""
    with up(tmp_path / "data", free_ports(1)) as one:
        family = {child.pid for child in one.children()}
        (one.data_dir / f".servers.json.{one.process.pid}").mkdir()
        one.run("reload")
        wait_for(lambda: "the old workers go on: cannot write" in one.output.read_text(encoding="utf-8"), "it holds")
        assert one.ready()
        assert {child.pid for child in one.children()} == family
        one.process.terminate()
        assert one.process.wait(20) == 0
        ended = ENDED.findall(one.output.read_text(encoding="utf-8").rpartition('"stopping"')[2])
        assert [role for role, _ in ended] == ["api", "api", "mail", "catcher", "valkey", "postgres"]
        assert {code for _, code in ended} == {"0"}
        wait_for(lambda: not any(alive(pid) for pid in family), "all are gone", 5.0)


def test_a_server_that_new_code_does_without_ends_after_all_who_use_it(tmp_path: Path) -> None:
    """A reload onto another database: the old workers keep theirs to their end, and then it ends, in order."""
    changes = tmp_path / "changes"
    changes.touch()
    program = [sys.executable, "-c", OTHER_CODE, str(changes), "up"]
    with OwnPostgres(_made(tmp_path / "pg")) as postgres, up(tmp_path / "data", free_ports(1), program) as one:
        old, server = one.workers() | one.mail_workers(), one.child("postgres")
        url = resolve(Settings(data_dir=one.data_dir)).database_url
        changes.write_text(f"VESTIBULE_DATABASE_URL={postgres.url}")
        assert one.run("reload").returncode == 0

        def gone() -> bool:
            try:
                psycopg.connect(url).close()
            except psycopg.OperationalError:
                assert not any(alive(pid) for pid in old)
                return not alive(server)
            return False

        wait_for(gone, "the workers and then their database have ended", 40)
        assert ENDED.findall(one.output.read_text(encoding="utf-8"))[-1] == ("postgres", "0")
        wait_for(one.ready, "it serves from the other one")
        assert len(one.workers()) == 2


def test_other_commands_join_a_running_up_and_a_second_up_is_refused(one: Up) -> None:
    """Migrations and API workers find the servers of the `up` in DATA_DIR; another `up` there ends with one line."""
    port = free_ports(1)
    joined = subprocess.Popen(command("serve"), env=environment(one.data_dir, port), stdout=subprocess.DEVNULL)
    guest = Up(one.data_dir, port, joined, one.output)
    try:
        second = one.run("up", port=port)
        assert (second.returncode, second.stderr.count("\n")) == (1, 1)
        assert one.run("migrate").stdout == "nothing to do\n"
        wait_for(guest.ready, "the guest is ready")
        assert int((one.data_dir / "vestibule.pid").read_text(encoding="ascii")) == one.process.pid
    finally:
        joined.terminate()
        assert joined.wait(15) == 0
    assert one.ready()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_the_start_ends_it_without_a_trace(tmp_path: Path, number: signal.Signals) -> None:
    """Whoever changes their mind at once is left with no process and no traceback."""
    output = tmp_path / "output"
    with output.open("wb") as sink:
        process = subprocess.Popen(command("up"), env=environment(tmp_path, free_ports(1)), stdout=sink, stderr=sink)
    wait_for((tmp_path / "postgres.lock").exists, "the first server is being started")
    family = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(number)
    assert process.wait(20) == 0
    wait_for(lambda: not any(alive(pid) for pid in family), "all are gone", 5.0)
    assert "Traceback" not in output.read_text(encoding="utf-8")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _back(one: Up, role: str, old: int) -> bool:
    return one.child(role) not in {0, old} and one.ready()


@contextmanager
def _suspended(pid: int) -> Iterator[None]:
    """Let a process pause; it goes on at the end at the latest."""
    send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        send(pid, signal.SIGCONT)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []
