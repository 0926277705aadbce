from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from service.listener import CannotStart, address_of, forget, open_listener

if TYPE_CHECKING:
    from pathlib import Path


def test_a_taken_port_is_named_with_what_to_do() -> None:
    """The refusal is one line with the port and the setting that moves it."""
    with socket.create_server(("127.0.0.1", 21600)), pytest.raises(CannotStart) as refusal:
        open_listener("127.0.0.1:21600")
    assert "21600" in str(refusal.value)
    assert "VESTIBULE_BIND" in str(refusal.value)


@pytest.mark.parametrize(
    "bind", ["localhost", "127.0.0.1:", "127.0.0.1:x", "nobody.invalid:1", "a..b:1", "192.0.2.1:21601"]
)
def test_an_impossible_address_is_refused_in_one_line(bind: str) -> None:
    """No traceback for what an operator mistypes."""
    with pytest.raises(CannotStart) as refusal:
        open_listener(bind)
    assert "VESTIBULE_BIND" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("bind", "address"), [("127.0.0.1:21602", "http://127.0.0.1:21602"), ("[::1]:21602", "http://[::1]:21602")]
)
def test_a_listener_tells_its_address(bind: str, address: str) -> None:
    """What is printed can be opened in a browser."""
    listener = open_listener(bind)
    assert address_of(listener) == address
    forget(listener)


def test_a_unix_socket_of_a_dead_program_is_replaced(tmp_path: Path) -> None:
    """A path that a kill left behind does not stop the next start, and goes away at an orderly end."""
    path = tmp_path / "socket"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    listener = open_listener(f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    forget(listener)
    assert not path.exists()


def test_a_unix_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    """Somebody who listens there keeps the path."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(CannotStart):
            open_listener(f"unix:{path}")
        assert path.exists()


def test_a_path_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """A file is never removed to make room."""
    path = tmp_path / "precious"
    path.write_text("data", encoding="utf-8")
    with pytest.raises(CannotStart):
        open_listener(f"unix:{path}")
    assert path.read_text(encoding="utf-8") == "data"
