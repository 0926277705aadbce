"""DATA_DIR: closed to others, short paths for sockets, keys made once, and where a running `up` has its servers."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from service.embedded.data_dir import (
    SOCKET_NAME_BYTES,
    SOCKET_PATH_BYTES,
    BadEnvironment,
    ensure,
    kept_keys,
    sockets,
)
from service.embedded.servers import Servers, ServersMissing, announce, code_keys, embedded, gather, resolve
from service.processes.listener import take_pid_file
from service.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

KEYS = {"mine": bytes(32)}
HERE = Servers("postgresql://a:secret@h/d", "redis://h", "smtp://h", KEYS)


def test_a_folder_is_made_and_closed_to_others(data_dir: Path) -> None:
    """DATA_DIR is its owner's alone, and a file in its place is named in one line."""
    assert ensure(data_dir / "a" / "b").stat().st_mode & 0o077 == 0
    (data_dir / "file").write_bytes(b"")
    with pytest.raises(BadEnvironment, match=r"^cannot write to .*/file/data: Not a directory$"):
        kept_keys(data_dir / "file" / "data")


def test_sockets_have_short_private_paths(data_dir: Path) -> None:
    """In DATA_DIR/run where that is short enough; else in a folder elsewhere, which others must not enter."""
    assert sockets(data_dir) == data_dir / "run"
    assert (data_dir / "run").stat().st_mode & 0o077 == 0
    deep = data_dir / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    elsewhere = sockets(deep)
    assert len(os.fsencode(elsewhere)) + 1 + SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES
    assert sockets(deep) == elsewhere
    elsewhere.chmod(0o755)
    with pytest.raises(BadEnvironment, match="only this user"):
        sockets(deep)
    elsewhere.rmdir()


def test_sockets_have_a_path_that_urls_carry(data_dir: Path) -> None:
    """A name that the locale cannot read, as `ü` under LC_ALL=C, would end in no URL of a server."""
    elsewhere = sockets(data_dir.with_name(f"{data_dir.name}-\udcc3\udcbc"))

    str(elsewhere).encode()
    assert elsewhere.stat().st_mode & 0o077 == 0
    elsewhere.rmdir()


def test_keys_are_made_once_and_kept(data_dir: Path) -> None:
    """Of sixteen makers at once one wins; the file is its owner's alone, and nothing is left beside it."""
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(kept_keys, [data_dir] * 16))
    assert all(keys == made[0] for keys in made)
    assert [(kid, len(key)) for kid, key in kept_keys(data_dir).items()] == [("k1", 32)]
    assert [entry.name for entry in data_dir.iterdir()] == ["code_keys"]
    assert (data_dir / "code_keys").stat().st_mode & 0o777 == 0o600


def test_spoilt_keys_are_not_replaced(data_dir: Path) -> None:
    """New keys would kill every code on its way, so the start stops with one line that shows no key."""
    for text in ("\n", "k1", "k1:AAAA", "k1:!"):
        (data_dir / "code_keys").write_text(text, encoding="ascii")
        with pytest.raises(BadEnvironment, match="does not hold keys") as caught:
            kept_keys(data_dir)
        assert "AAAA" not in str(caught.value)
        assert (data_dir / "code_keys").read_text(encoding="ascii") == text


def test_only_servers_without_a_url_are_embedded(data_dir: Path) -> None:
    """Each URL and key that is set is where that server is."""
    urls = {"database_url": SecretStr("postgresql://h/d"), "mail_url": SecretStr("smtp://h")}
    settings = Settings(data_dir=data_dir, code_keys=KEYS, **urls)
    assert code_keys(settings) == KEYS
    assert list(data_dir.iterdir()) == []
    processes = embedded(settings)
    assert [process.name for process in processes] == ["valkey"]
    redis_url = f"unix://{data_dir}/run/valkey.sock?db=0"
    assert gather(settings, {"redis_url": processes[0].url}) == Servers("postgresql://h/d", redis_url, "smtp://h", KEYS)
    assert [process.name for process in embedded(Settings(data_dir=data_dir))] == ["postgres", "valkey", "catcher"]


def test_what_is_missing_comes_from_a_running_up(data_dir: Path) -> None:
    """What is set goes first; what is announced counts only while the supervisor that announced it lives."""
    settings = Settings(data_dir=data_dir, redis_url=SecretStr("redis://mine"), code_keys=KEYS)
    announce(settings, HERE, os.getpid())
    with pytest.raises(ServersMissing) as caught:
        resolve(settings)
    names = "VESTIBULE_DATABASE_URL, VESTIBULE_MAIL_URL"
    assert str(caught.value) == f"no {names} and no running `vestibule up` in {data_dir}"
    held = take_pid_file(data_dir)
    assert resolve(settings) == Servers(HERE.database_url, "redis://mine", HERE.mail_url, KEYS)
    announce(settings, HERE, os.getpid() + 1)
    with pytest.raises(ServersMissing):
        resolve(settings)
    os.close(held)
    urls = {"database_url": SecretStr("d"), "redis_url": SecretStr("r"), "mail_url": SecretStr("m")}
    assert resolve(Settings(data_dir=data_dir / "none", code_keys=KEYS, **urls)) == Servers("d", "r", "m", KEYS)


def test_the_announcement_is_its_owners_alone_and_servers_show_no_password(data_dir: Path) -> None:
    """URLs may hold passwords."""
    announce(Settings(data_dir=data_dir), HERE, os.getpid())
    assert (data_dir / "servers.json").stat().st_mode & 0o777 == 0o600
    assert "secret" not in repr(HERE)
