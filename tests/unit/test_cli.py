"""The console command: every mistake is one line on stderr that says what to do, and no secret is in it."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.settings import load, shown
from tests.servers.ports import free_ports

if TYPE_CHECKING:
    from tests.servers.smtp import SmtpServer

PORT = free_ports(2)
NOBODY = "127.0.0.1:9"  # the discard port: nothing listens there
SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldC0="


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """Return an environment with these settings and no others."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
    plain |= {"VESTIBULE_DATA_DIR": str(folder / "data"), "VESTIBULE_BIND": f"127.0.0.1:{PORT}"}
    return plain | {f"VESTIBULE_{name}": value for name, value in settings.items()}


def vestibule(folder: Path, *words: str, **settings: str) -> Ended:
    """Run the console command."""
    command = [sys.executable, "-m", "service.cli", *words]
    ended = subprocess.run(
        command, env=environment(folder, **settings), capture_output=True, text=True, timeout=30, check=False
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def refused(ended: Ended, code: int, *words: str) -> None:
    """Assert a refusal: the exit code, one line, what it has to name, and no secret."""
    assert ended.code == code
    assert ended.err.startswith("vestibule: ")
    assert ended.err.count("\n") == 1
    assert all(word in ended.err for word in words), ended.err
    assert "hidden" not in ended.err


def test_help_costs_no_import() -> None:
    """The words are printed without loading settings, drivers or frameworks."""
    program = "import sys; from service.cli import main; sys.argv[1:] = ['--help']; main(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"up", "serve", "worker", "migrate", "reload", "config", "check", "mail", "user"} <= set(loaded)
    assert not {"pydantic", "psycopg", "redis", "quart", "anyio", "asyncio", "loguru"} & set(loaded)


@pytest.mark.parametrize("words", [[], ["mail"], ["user"], ["config"]])
def test_without_a_command_the_commands_are_listed(tmp_path: Path, words: list[str]) -> None:
    """The exit code says that nothing was done."""
    ended = vestibule(tmp_path, *words)
    assert ended.code == 2
    assert ended.err.startswith("Usage: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "nonsense"),
        (["serve", "--nonsense"], "--nonsense"),
        (["mail", "show", "abc"], "UUID"),
        (["mail", "replay"], "--dead"),
        (["mail", "list", "--since", "hidden-day"], "2h"),
        (["mail", "list", "--limit", "0"], "--limit"),
        (["user", "show"], "EMAIL"),
        (["user", "show", "hidden"], "@"),
    ],
)
def test_a_wrong_word_is_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    """Before anything is read or reached."""
    refused(vestibule(tmp_path, *words), 2, said)


@pytest.mark.parametrize("word", ["up", "serve", "worker", "migrate", "reload", "check"])
def test_every_command_refuses_bad_settings_in_one_line(tmp_path: Path, word: str) -> None:
    """A typing error in the environment stops every command with code 2 and the name that is meant."""
    refused(vestibule(tmp_path, word, WORKRES="3"), 2, "VESTIBULE_WORKRES", "VESTIBULE_WORKERS")


@pytest.mark.parametrize("words", [["up"], ["serve"], ["config", "check"]])
@pytest.mark.parametrize(("name", "value"), [("MAIL_TEMPLATES", "/nowhere/at/all"), ("MAIL_FROM", "two@words and")])
def test_mails_that_cannot_be_made_stop_the_start(tmp_path: Path, words: list[str], name: str, value: str) -> None:
    """A folder of templates that is missing and a sender that is no address are mistakes like any other."""
    refused(vestibule(tmp_path, *words, **{name: value}), 2, f"VESTIBULE_{name}")


def test_config_check_masks_secrets_and_prints_what_can_be_set_again(tmp_path: Path) -> None:
    """The printed settings show no secret; loaded again, they are the same settings."""
    ended = vestibule(
        tmp_path,
        *("config", "check"),
        DATABASE_URL="postgresql://u:hidden@h/d",
        CODE_KEYS=f"k1:{SECRET}",
        OPS_TOKEN="hidden",
        ACTIVATE_LIMIT="off",
        CODE_LIMITS="7/minute,9/day",
        TRUSTED_PROXIES="10.0.0.0/8,unix",
    )
    assert ended.code == 0
    assert "hidden" not in ended.out
    assert SECRET not in ended.out
    lines = dict(line.split("=", 1) for line in ended.out.splitlines())
    assert lines["VESTIBULE_DATABASE_URL"] == "***"
    again = load({name: value for name, value in lines.items() if value and "***" not in value})
    assert again.activate_limit is None
    assert {name: shown(name, value) for name, value in again} == {
        name.removeprefix("VESTIBULE_").lower(): "" if "***" in value else value for name, value in lines.items()
    }


def test_output_that_cannot_be_written_is_a_refusal(tmp_path: Path) -> None:
    """A full disk behind stdout is one line and exit code 1."""
    command = [sys.executable, "-m", "service.cli", "config", "check"]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        ended = subprocess.run(
            command, env=environment(tmp_path), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    refused(Ended(ended.returncode, "", ended.stderr), 1, "space")


def test_an_unexpected_error_is_shown_without_its_text(tmp_path: Path) -> None:
    """Types and places are one line, as in the logs; a driver's text may hold what a user typed."""
    program = (
        "from service import cli\n"
        "@cli.vestibule.command()\n"
        "def broken(): raise ExceptionGroup('hidden', [LookupError('hidden')])\n"
        "import sys; sys.argv[1:] = ['broken']; raise SystemExit(cli.main())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    refused(Ended(ended.returncode, "", ended.stderr), 1, "LookupError", "broken")


@pytest.mark.parametrize("words", [["serve"], ["worker"], ["migrate"], ["check"], ["mail", "list"]], ids=" ".join)
def test_commands_without_servers_say_what_is_missing(tmp_path: Path, words: list[str]) -> None:
    """No URL and no running `up`: one line, and nothing embedded is started in secret."""
    refused(vestibule(tmp_path, *words), 1, "VESTIBULE_DATABASE_URL", "vestibule up")


@pytest.mark.parametrize("words", [["up"], ["migrate"], ["mail", "list"], ["user", "delete", "a@example.com"]])
def test_an_unreachable_database_is_named_without_its_password(tmp_path: Path, words: list[str]) -> None:
    """A URL that leads nowhere stops what cannot work without it within seconds."""
    urls = {"REDIS_URL": f"redis://{NOBODY}/0", "MAIL_URL": f"smtp://{NOBODY}"}
    ended = vestibule(tmp_path, *words, DATABASE_URL=f"postgresql://u:hidden@{NOBODY}/d", **urls)
    refused(ended, 1, "VESTIBULE_DATABASE_URL", "127.0.0.1")


def test_check_says_of_each_server_what_is_wrong(tmp_path: Path, database: str, valkey: str, smtp: SmtpServer) -> None:
    """A line a server, and 1 when one fails; a test mail is sent on request."""
    urls = {"DATABASE_URL": database, "REDIS_URL": valkey, "MAIL_URL": smtp.url}
    ended = vestibule(tmp_path, "check", "--send-to", "ann@example.com", **urls)
    assert (ended.code, ended.out) == (0, "database: ok\nredis: ok\nmail server: ok\n")
    assert [mail.recipients for mail in smtp.wait_for(1)] == [("ann@example.com",)]
    urls = {"DATABASE_URL": database, "REDIS_URL": valkey, "MAIL_URL": f"smtp://u:hidden@{NOBODY}"}
    ended = vestibule(tmp_path, "check", **urls)
    assert ended.out.splitlines()[:2] == ["database: ok", "redis: ok"]
    assert ended.out.splitlines()[2].startswith("mail server: connection refused")
    assert (ended.code, ended.err) == (1, "")
    assert "hidden" not in ended.out


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
    refused(ended, ended.code, f"VESTIBULE_{name}")
    assert ended.code in {1, 2}
    assert not (tmp_path / "data" / "postgres").exists()


def test_a_taken_port_stops_up_before_any_server_is_started(tmp_path: Path) -> None:
    """The port is tried first, and the line names it."""
    with socket.create_server(("127.0.0.1", PORT + 1)):
        refused(vestibule(tmp_path, "up", BIND=f"127.0.0.1:{PORT + 1}"), 1, str(PORT + 1), "VESTIBULE_BIND")
    assert not (tmp_path / "data" / "postgres").exists()


def test_up_in_a_terminal_is_told_to_write_for_people(tmp_path: Path) -> None:
    """LOG_FORMAT=text is the default there, and only there."""
    program = (
        "import os; from service import cli\n"
        "cli._supervise = lambda mode: print(mode, os.environ.get('VESTIBULE_LOG_FORMAT', 'unset'))\n"
        "import sys; sys.argv[1:] = ['up']; raise SystemExit(cli.main())"
    )
    command = [sys.executable, "-c", program]
    ours, theirs = pty.openpty()
    try:
        for values, said in (({}, b"up text"), ({"LOG_FORMAT": "json"}, b"up json")):
            subprocess.run(command, env=environment(tmp_path, **values), stdout=theirs, check=True)
            assert os.read(ours, 100).strip() == said
    finally:
        os.close(ours)
        os.close(theirs)
    assert subprocess.check_output(command, env=environment(tmp_path)).strip() == b"up unset"


@pytest.mark.parametrize("left", [None, "1", "no pid"])
def test_reload_without_a_supervisor_says_so(tmp_path: Path, left: str | None) -> None:
    """No pid file, or one that nobody has locked: nobody is signalled."""
    if left is not None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "vestibule.pid").write_text(left, encoding="utf-8")
    refused(vestibule(tmp_path, "reload"), 1, "vestibule up")


def test_a_data_dir_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in its place is a refusal, not a traceback."""
    (tmp_path / "data").write_text("", encoding="utf-8")
    refused(vestibule(tmp_path, "up"), 1, "data")
