from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.faults.under_test import running, wait_for
from tests.servers.ports import free_ports

if TYPE_CHECKING:
    from pathlib import Path

PORT = free_ports(12)
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio", "trio"])
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
    b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcdefgh",
    b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
    WEBSOCKET + b"\xff" * 40,
    b"GET / HTTP/9.9\r\n\r\n",
    b"\r\n" * 100,
    b"GET /" + b"a" * 70000,
    b"GET / HTTP/1.0\r\n\r\n",
    PRIOR_KNOWLEDGE,
    UPGRADE,
)


@LOOPS
def test_nothing_but_http_1_is_spoken(tmp_path: Path, loop: str) -> None:
    """Offers to upgrade are answered in HTTP/1.1; HTTP/2 by prior knowledge never gets a frame."""
    with running(tmp_path, PORT, loop=loop):
        assert _say(PORT, UPGRADE).startswith(b"HTTP/1.1 200")
        assert _say(PORT, WEBSOCKET).startswith(b"HTTP/1.1 200")
        assert _say(PORT, PRIOR_KNOWLEDGE).startswith(b"HTTP/1.1 ")


@LOOPS
def test_answers_do_not_name_the_server(tmp_path: Path, loop: str) -> None:
    """No answer carries a Server header, errors of the protocol included."""
    with running(tmp_path, PORT + 1, loop=loop):
        assert b"\r\nserver:" not in _say(PORT + 1, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").lower()
        assert b"\r\nserver:" not in _say(PORT + 1, b"rubbish\r\n\r\n").lower()


@LOOPS
def test_what_one_connection_does_harms_no_other(tmp_path: Path, loop: str) -> None:
    """Rubbish, half requests and resets end their own connection; the workers stay the same."""
    with running(tmp_path, PORT + 2, loop=loop) as service:
        before = service.workers()
        for data in NASTY:
            for reset in (False, True):
                _say(service.port, data, reset=reset)
        assert service.get()[0] == 200
        assert service.workers() == before
        service.process.terminate()
        assert service.process.wait(10) == 0


def test_an_idle_connection_is_closed_at_the_stop_and_costs_no_grace(tmp_path: Path) -> None:
    """SIGTERM with a kept-alive connection that says nothing: it is closed, and the service ends at once."""
    with running(tmp_path, PORT + 3) as service, socket.create_connection(("127.0.0.1", service.port)) as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(4096)
        service.process.terminate()
        assert wait_for(lambda: service.process.poll() is not None, "the end") < 3.0
        assert service.process.returncode == 0


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
