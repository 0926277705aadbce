from __future__ import annotations

import resource
import socket
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.faults.hostile.raw import HOST, LIVEZ, PATIENCE, REGISTER, Talk, ask, get, talk
from tests.faults.under_test import running
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.instance import Instance

BOTH = pytest.mark.parametrize("loop", ["uvloop", "trio"])
SPARED = 200  # files of a worker that are not for connections


@contextmanager
def few_files(connections: int) -> Iterator[None]:
    """Let each worker that is started meanwhile have so many connections at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (SPARED + connections, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_slow_request_is_not_waited_for(service: Instance) -> None:
    """A head or a body that dribbles costs its connection after five seconds; others are served meanwhile."""
    with talk(service.port, get("/livez")[:-2] + b"X-A: ") as head, talk(service.port) as body:
        body.say(REGISTER + b"Content-Length: 10\r\n\r\n{")
        for _ in range(4):
            threading.Event().wait(1.0)  # a slow client's second
            head.say(b"a")
            body.say(b" ")
            assert ask(service.port, LIVEZ).status == 200
        answer = body.hear()
        assert (answer.status, answer.error) == (408, "RequestTimeout")
        body.ended()
        head.ended()


@BOTH
def test_a_connection_for_which_no_served_one_can_make_room_is_closed(tmp_path: Path, loop: str) -> None:
    """A worker whose connections are all being served takes no more, and goes on with those it has."""
    with (
        few_files(1),
        running(tmp_path, LOOP=loop, WORKERS="1") as service,
        talk(service.port, get("/slow")) as busy,
    ):
        wait_for(lambda: "\nslow " in service.said(), "it is being served")
        with talk(service.port) as late:
            late.ended()
        service.folder.joinpath("go").touch()
        assert busy.hear().status == 200
    assert "connection failed" not in service.said()


def test_a_connection_that_its_client_has_closed_is_given_up_at_once(service: Instance) -> None:
    """No worker keeps half of a connection for the time that it would wait for another request."""
    for _ in range(8):
        assert ask(service.port, LIVEZ).status == 200
    workers = [psutil.Process(pid) for pid in service.titled("api worker")]

    def halves() -> list[object]:
        found = [one for worker in workers for one in worker.net_connections("tcp")]
        return [one for one in found if one.status == psutil.CONN_CLOSE_WAIT]

    wait_for(lambda: not halves(), "all are closed", 2.0)


@BOTH
def test_idle_connections_starve_nobody(tmp_path: Path, loop: str) -> None:
    """Beyond its bound a worker ends the longest idle connection, none that is served; who asks is answered."""
    with few_files(60), running(tmp_path, LOOP=loop) as service, ExitStack() as crowd:
        root = get("/")
        first = crowd.enter_context(talk(service.port, root))
        assert first.hear().status == 200
        busy = [crowd.enter_context(talk(service.port, get("/slow"))) for _ in range(10)]
        wait_for(lambda: service.said().count("\nslow ") == 10, "all of them are being served")
        for number in range(200):
            crowd.enter_context(talk(service.port, b"GET / HT" if number % 2 else b""))
            if number % 20 == 0:
                assert ask(service.port, root).status == 200
        first.ended()
        service.folder.joinpath("go").touch()
        assert [one.hear().status for one in busy] == [200] * 10
        assert len(service.workers()) == 2
    assert "Too many open files" not in service.said()


@BOTH
def test_who_does_not_read_is_cut_off_and_holds_no_worker_back(tmp_path: Path, loop: str) -> None:
    """An answer that nobody takes costs its connection after some seconds; nothing is left that a stop waits for."""
    with running(tmp_path, LOOP=loop) as service, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1.0)
        connection.connect((HOST, service.port))
        with suppress(TimeoutError):  # the service reads no further request before it has answered those it has
            Talk(connection).say(get("/large") * 100_000)
        assert ask(service.port, get("/")).status == 200
        connection.settimeout(patience(3 * PATIENCE))  # the kernel looks at its own times, ten seconds and more
        assert _hung_up(connection)
        service.process.terminate()
        assert service.process.wait(patience(PATIENCE)) == 0


def _hung_up(connection: socket.socket) -> bool:
    """Wait, without reading, until sending fails: the peer has reset the connection."""
    try:
        while True:
            connection.sendall(b"x" * 65536)
    except TimeoutError:
        return False
    except OSError:
        return True
