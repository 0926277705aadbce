from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.faults.under_test import running
from tests.servers.ports import free_ports
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@pytest.fixture(scope="module", params=["uvloop", "trio"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Give a stand-in with two API workers."""
    with running(tmp_path_factory.mktemp("p"), free_ports(1), loop=request.param) as one:
        yield one


def test_nothing_but_http_1_is_spoken(service: Running) -> None:
    """Offers to upgrade are answered in HTTP/1.1; HTTP/2 by prior knowledge never gets a frame."""
    assert _say(service.port, UPGRADE).startswith(b"HTTP/1.1 200")
    assert _say(service.port, WEBSOCKET).startswith(b"HTTP/1.1 200")
    assert _say(service.port, PRIOR_KNOWLEDGE).startswith(b"HTTP/1.1 ")


def test_answers_do_not_name_the_server(service: Running) -> None:
    """No answer carries a Server header, errors of the protocol included."""
    assert b"\r\nserver:" not in _say(service.port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").lower()
    assert b"\r\nserver:" not in _say(service.port, b"rubbish\r\n\r\n").lower()


def test_what_one_connection_does_harms_no_other(service: Running) -> None:
    """Rubbish, half requests and resets end their own connection; the workers stay the same."""
    before = service.workers()
    with ThreadPoolExecutor(len(NASTY)) as together:
        for reset in (False, True):
            list(together.map(partial(_say, service.port, reset=reset), NASTY))
    assert service.get()[0] == 200
    assert service.workers() == before


def test_a_connection_that_its_client_has_closed_is_given_up_at_once(service: Running) -> None:
    """No worker keeps half of a connection for the time that it would wait for another request."""
    for _ in range(8):
        assert service.get()[0] == 200
    wait_for(lambda: not _halves(service), "all are closed", 2.0)


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
