from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.commands import guarded, shown
from service.settings import Settings, read
from tests.servers.ports import free_ports

PORT = free_ports(12)
NOBODY = "127.0.0.1:9"  # the discard port: nothing listens there


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def vestibule(folder: Path, *words: str, **settings: str) -> Ended:
    """Run the console command with these settings and no others."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
    environment = {**plain, "VESTIBULE_DATA_DIR": str(folder / "data"), "VESTIBULE_BIND": f"127.0.0.1:{PORT}"}
    environment |= {f"VESTIBULE_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "service.cli", *words]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def refused(ended: Ended, code: int, *words: str) -> None:
    """Assert a refusal: the exit code, one line, and what it has to name."""
    assert ended.code == code
    assert ended.err.startswith("vestibule: ")
    assert ended.err.count("\n") == 1
    assert all(word in ended.err for word in words), ended.err


def test_help_costs_no_import() -> None:
    """The words are printed without loading settings, drivers or frameworks."""
    program = "import sys, service.cli as c; c.parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "psycopg", "redis", "quart", "anyio", "asyncio"} & set(loaded)


def test_the_version_is_printed(tmp_path: Path) -> None:
    """`--version` names the program and its version."""
    assert vestibule(tmp_path, "--version").out.startswith("vestibule ")


def test_no_word_at_all_explains_itself(tmp_path: Path) -> None:
    """Without a command the words are listed, and the exit code says that nothing was done."""
    ended = vestibule(tmp_path)
    assert ended.code == 2
    assert "serve" in ended.err


@pytest.mark.parametrize("word", ["up", "serve", "worker", "migrate", "reload"])
def test_every_command_refuses_bad_settings_in_one_line(tmp_path: Path, word: str) -> None:
    """A typing error in the environment stops every command with code 2 and its name."""
    refused(vestibule(tmp_path, word, WORKRES="3"), 2, "VESTIBULE_WORKRES")


def test_config_check_masks_secrets_and_prints_what_can_be_set_again(tmp_path: Path) -> None:
    """The printed settings show no secret; read again, they give the same settings."""
    secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldC0="
    ended = vestibule(
        tmp_path,
        *("config", "check"),
        DATABASE_URL="postgresql://u:hidden@h/d",
        CODE_KEYS=f"k1:{secret}",
        OPS_TOKEN="hidden",
        ACTIVATE_LIMIT="off",
        CODE_LIMITS="7/minute,9/day",
        TRUSTED_PROXIES="10.0.0.0/8",
    )
    assert ended.code == 0
    assert "hidden" not in ended.out
    assert secret not in ended.out
    lines = dict(line.split("=", 1) for line in ended.out.splitlines())
    assert lines["VESTIBULE_DATABASE_URL"] == "***"
    plain = {name: value for name, value in lines.items() if value and "***" not in value}
    again = read(plain)
    assert again.activate_limit is None
    assert [(rule.limit, rule.seconds) for rule in again.code_limits] == [(7, 60), (9, 86400)]
    assert {name: shown(name, value) for name, value in again} == {
        name.removeprefix("VESTIBULE_").lower(): "" if "***" in value else value for name, value in lines.items()
    }


def test_every_default_setting_can_be_shown() -> None:
    """Each setting has a form for people."""
    assert all(isinstance(shown(name, value), str) for name, value in Settings())


def test_what_cannot_be_printed_is_a_refusal(tmp_path: Path) -> None:
    """A full disk behind stdout is one line and exit code 1, not a word of the interpreter's at its end."""
    environment = {**os.environ, "VESTIBULE_DATA_DIR": str(tmp_path), "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-m", "service.cli", "config", "check"]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        ended = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    refused(Ended(ended.returncode, "", ended.stderr), 1, "space")


def test_an_unexpected_error_is_told_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Types and places are one line for the log, as in the workers; a driver's text may hold what a user typed."""

    def broken(_: argparse.Namespace) -> int:
        raise ExceptionGroup("ann@example.org", [LookupError("ann@example.org")])

    code = guarded(broken, argparse.Namespace())
    said = capsys.readouterr().err
    refused(Ended(code, "", said), 1, "LookupError", "test_cli.py", "broken")
    assert "ann" not in said


@pytest.mark.parametrize("word", ["serve", "worker", "migrate"])
def test_commands_without_servers_say_what_is_missing(tmp_path: Path, word: str) -> None:
    """No URL and no running `up`: one line, and nothing embedded is started in secret."""
    refused(vestibule(tmp_path, word), 1, "VESTIBULE_DATABASE_URL", "vestibule up")


@pytest.mark.parametrize("word", ["up", "serve", "worker", "migrate"])
def test_an_unreachable_database_is_named_without_its_password(tmp_path: Path, word: str) -> None:
    """A URL that leads nowhere stops the start within seconds."""
    urls = {"REDIS_URL": f"redis://{NOBODY}/0", "MAIL_URL": f"smtp://{NOBODY}"}
    ended = vestibule(tmp_path, word, DATABASE_URL=f"postgresql://u:hidden@{NOBODY}/d", **urls)
    refused(ended, 1, "VESTIBULE_DATABASE_URL", "127.0.0.1")
    assert "hidden" not in ended.err


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("REDIS_URL", f"redis://:hidden@{NOBODY}/0"),
        ("REDIS_URL", "http://hidden"),
        ("REDIS_URL", "redis://127.0.0.1:hidden/0"),
        ("MAIL_URL", f"smtp://u:hidden@{NOBODY}"),
        ("MAIL_URL", "gopher://hidden"),
        ("MAIL_URL", "smtp://u:hidden@mail..example.com"),
        ("DATABASE_URL", "mysql://u:hidden@h/d"),
        ("DATABASE_URL", "postgresql://u:hidden@h:x/d"),
        ("DATABASE_URL", "postgresql://u@127.0.0.1/d?nonsense=hidden"),
    ],
)
def test_up_refuses_a_url_that_cannot_be_used(tmp_path: Path, name: str, url: str) -> None:
    """Each URL is tried before anything is started, and its secrets are not repeated."""
    ended = vestibule(tmp_path, "up", **{name: url})
    assert ended.code in {1, 2}
    assert f"VESTIBULE_{name}" in ended.err
    assert ended.err.count("\n") == 1
    assert "hidden" not in ended.err


def test_a_taken_port_stops_up_before_any_server_is_started(tmp_path: Path) -> None:
    """The port is tried first, and the line names it."""
    with socket.create_server(("127.0.0.1", PORT + 1)):
        refused(vestibule(tmp_path, "up", BIND=f"127.0.0.1:{PORT + 1}"), 1, str(PORT + 1), "VESTIBULE_BIND")
    assert not (tmp_path / "data" / "postgres").exists()


@pytest.mark.parametrize("left", [None, "1", "no pid"])
def test_reload_without_a_master_says_so(tmp_path: Path, left: str | None) -> None:
    """No pid file, or the pid of a stranger: nobody is signalled."""
    if left is not None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "vestibule.pid").write_text(left, encoding="utf-8")
    refused(vestibule(tmp_path, "reload"), 1, "vestibule.pid")


def test_a_data_dir_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in its place is a refusal, not a traceback."""
    (tmp_path / "data").write_text("", encoding="utf-8")
    refused(vestibule(tmp_path, "up"), 1, "data")


@pytest.mark.parametrize("words", [["up"], ["serve"], ["config", "check"]])
@pytest.mark.parametrize(("name", "value"), [("MAIL_TEMPLATES", "/nowhere/at/all"), ("MAIL_FROM", "two words")])
def test_what_could_make_no_mail_is_refused_at_the_start(
    tmp_path: Path, words: list[str], name: str, value: str
) -> None:
    """A folder of templates that is missing and a sender that is no address stop the start with one line."""
    refused(vestibule(tmp_path, *words, **{name: value}), 2, f"VESTIBULE_{name}")
