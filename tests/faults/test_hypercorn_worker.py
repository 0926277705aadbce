from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import psutil

from tests.faults.under_test import running, wait_for
from tests.servers.ports import free_ports

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.under_test import Running

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
)
WEBSOCKET = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
PRIOR_KNOWLEDGE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
NASTY = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),  # TLS
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n\x00\x00\x00",  # pipelined, then rubbish
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /late HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcdefgh",
    b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
    WEBSOCKET + b"\xff" * 40,
    b"GET / HTTP/9.9\r\n\r\n",
    b"\r\n" * 100,
    b"GET /" + b"a" * 70000,
    b"GET / HTTP/1.0\r\n\r\n",
    PRIOR_KNOWLEDGE,
    UPGRADE,
)


def test_nothing_but_http_1_is_spoken(stand_in: Running) -> None:
    """Offers to upgrade are answered in HTTP/1.1; HTTP/2 by prior knowledge never gets a frame."""
    assert _say(stand_in.port, UPGRADE).startswith(b"HTTP/1.1 200")
    assert _say(stand_in.port, WEBSOCKET).startswith(b"HTTP/1.1 200")
    assert _say(stand_in.port, PRIOR_KNOWLEDGE).startswith(b"HTTP/1.1 ")


def test_answers_do_not_name_the_server(stand_in: Running) -> None:
    """No answer carries a Server header, errors of the protocol included."""
    assert b"\r\nserver:" not in _say(stand_in.port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").lower()
    assert b"\r\nserver:" not in _say(stand_in.port, b"rubbish\r\n\r\n").lower()


def test_what_one_connection_does_harms_no_other(stand_in: Running) -> None:
    """Rubbish, half requests and resets end their own connection; the workers stay the same."""
    before = stand_in.workers()
    with ThreadPoolExecutor(len(NASTY)) as together:
        for reset in (False, True):
            list(together.map(partial(_say, stand_in.port, reset=reset), NASTY))
    assert stand_in.get()[0] == 200
    assert stand_in.workers() == before


def test_a_connection_that_its_client_has_closed_is_given_up_at_once(stand_in: Running) -> None:
    """No worker keeps half of a connection for the time that it would wait for another request."""
    for _ in range(8):
        assert stand_in.get()[0] == 200
    wait_for(lambda: not _halves(stand_in), "all are closed", 2.0)


def test_an_idle_connection_is_closed_at_the_stop_and_costs_no_grace(tmp_path: Path) -> None:
    """SIGTERM with a kept-alive connection that says nothing: it is closed, and the service ends at once."""
    with running(tmp_path, free_ports(1)) as service, socket.create_connection(("127.0.0.1", service.port)) as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(4096)
        service.process.terminate()
        assert wait_for(lambda: service.process.poll() is not None, "the end") < 3.0
        assert service.process.returncode == 0


def _halves(service: Running) -> int:
    workers = [psutil.Process(pid) for pid in service.workers()]
    return sum(one.status == psutil.CONN_CLOSE_WAIT for worker in workers for one in worker.net_connections("tcp"))


def _say(port: int, data: bytes, *, reset: bool = False) -> bytes:
    """Send raw bytes; return what comes back within a moment, or reset the connection at once."""
    with socket.create_connection(("127.0.0.1", port), timeout=0.3) as connection:
        connection.sendall(data)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            return b""
        try:
            return connection.recv(4096)
        except (TimeoutError, ConnectionResetError):
            return b""
