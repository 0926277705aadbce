from __future__ import annotations

import resource
import socket
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.faults.hostile.raw import HOST, LIVEZ, PATIENCE, Talk, ask, get, talk
from tests.faults.under_test import running
from tests.servers.ports import free_ports
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.instance import Instance

BOTH = pytest.mark.parametrize("loop", ["uvloop", "trio"])
FILES = 260  # of which 200 are spared: sixty connections a worker


@contextmanager
def few_files() -> Iterator[None]:
    """Let what is started meanwhile open few files only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@BOTH
def test_idle_connections_starve_nobody(tmp_path: Path, loop: str) -> None:
    """Beyond its bound a worker ends the longest idle connection; who sends a request is served, all the time."""
    with few_files(), running(tmp_path, free_ports(1), loop=loop) as service, ExitStack() as crowd:
        root = get("/")
        first = crowd.enter_context(talk(service.port, root))
        assert first.hear().status == 200
        for number in range(200):
            crowd.enter_context(talk(service.port, b"GET / HT" if number % 2 else b""))
            if number % 20 == 0:
                assert ask(service.port, root).status == 200
        assert first.ended(1.0) < 1.0
        assert ask(service.port, root).status == 200
        assert len(service.workers()) == 2
    assert "Too many open files" not in service.said()


def test_a_request_that_is_served_is_not_ended_for_its_place(tmp_path: Path) -> None:
    """Only idle connections make room."""
    with few_files(), running(tmp_path, free_ports(1)) as service, ExitStack() as crowd:
        busy = [crowd.enter_context(talk(service.port, get("/slow"))) for _ in range(10)]
        wait_for(lambda: service.said().count("slow") == 10, "all of them are being served")
        for _ in range(200):
            crowd.enter_context(talk(service.port))
        (tmp_path / "go").touch()
        assert [one.hear().status for one in busy] == [200] * 10


def test_who_does_not_read_is_cut_off(service: Instance) -> None:
    """An answer that nobody takes costs its connection after some seconds; others are served meanwhile."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1.0)
        connection.connect((HOST, service.port))
        slow = Talk(connection)
        with suppress(TimeoutError):  # the service reads no further request before it has answered those it has
            slow.say(get("/openapi.json") * 400)
        assert ask(service.port, LIVEZ).status == 200
        connection.settimeout(patience(PATIENCE))
        assert _hung_up(connection)


def _hung_up(connection: socket.socket) -> bool:
    """Wait, without reading, until sending fails: the peer has reset the connection."""
    try:
        while True:
            connection.sendall(b"x" * 65536)
    except TimeoutError:
        return False
    except OSError:
        return True


@BOTH
def test_who_was_cut_off_holds_no_worker_back(tmp_path: Path, loop: str) -> None:
    """Nothing of such a connection is left that a stop would wait for."""
    with running(tmp_path, free_ports(1), loop=loop) as service, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1.0)
        connection.connect((HOST, service.port))
        with suppress(TimeoutError):
            Talk(connection).say(get("/") * 100_000)
        connection.settimeout(patience(PATIENCE))
        assert _hung_up(connection)
        service.process.terminate()
        assert wait_for(lambda: service.process.poll() is not None, "the end", PATIENCE) < patience(PATIENCE)
        assert service.process.returncode == 0
