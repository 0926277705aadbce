"""The console command: every mistake is one line on stderr that says what to do, and no secret is in it.

The command line runs in this process; what only a process shows has one of its own. `plan` is what the supervisor of
`up`, `serve` and `worker` has a child run first.
"""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from service import cli
from service.settings import load, shown
from tests.servers.ports import free_ports
from tests.servers.smtp import SmtpServer

PORT = free_ports()
NOBODY = "127.0.0.1:9"  # the discard port: nothing listens there
SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldC0="


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def settings_of(folder: Path, settings: dict[str, str]) -> dict[str, str]:
    """Return the variables that say these settings."""
    chosen = {"DATA_DIR": str(folder / "data"), "BIND": f"127.0.0.1:{PORT}", **settings}
    return {f"VESTIBULE_{name}": value for name, value in chosen.items()}


def vestibule(folder: Path, words: str, **settings: str) -> Ended:
    """Run the console command in this process."""
    with CliRunner(env=settings_of(folder, settings)).isolation() as (out, err, _):
        try:
            code = cli.main(words.split())
        except SystemExit as end:
            code = int(end.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        return Ended(code, out.getvalue().decode(), err.getvalue().decode())


def process(folder: Path, *words: str, out: int = subprocess.PIPE, **settings: str) -> Ended:
    """Run Python with these words as a process of its own."""
    environment = {**os.environ, **settings_of(folder, settings)}
    command = [sys.executable, *words]
    ended = subprocess.run(
        command, env=environment, stdout=out, stderr=subprocess.PIPE, text=True, timeout=30, check=False
    )
    return Ended(ended.returncode, ended.stdout or "", ended.stderr)


def refused(ended: Ended, code: int, *words: str) -> None:
    """Assert a refusal: the exit code, one line, what it has to name, and no secret."""
    assert (ended.code, ended.err.count("\n")) == (code, 1), ended
    assert ended.err.startswith("vestibule: ")
    assert all(word in ended.err for word in words), ended.err
    assert "hidden" not in ended.err


def test_closed_streams_are_no_fault(tmp_path: Path) -> None:
    """`>&-`, as some daemons start what they run: a good command ends with 0, a bad one with its line."""
    script = 'exec "$0" -m service.cli config check <&- >&-'
    environment = {**os.environ, **settings_of(tmp_path, {})}
    for more, code in (({}, 0), ({"VESTIBULE_WORKERS": "many"}, 2)):
        command = ["sh", "-c", script, sys.executable]
        ended = subprocess.run(command, env=environment | more, stderr=subprocess.PIPE, text=True, check=False)
        assert (ended.returncode, ended.stderr.count("\n")) == (code, code // 2), ended


PLANS = ("plan up start", "plan serve start", "plan worker start")
WRONG_WORDS = {
    "nonsense": "nonsense",
    "serve --nonsense": "--nonsense",
    "mail show abc": "UUID",
    "mail replay": "--dead",
    "mail list --since hidden-day": "2h",
    "mail list --limit 0": "--limit",
    "user show": "EMAIL",
    "user show hidden": "@",
}
WRONG_URLS = [
    (1, "REDIS_URL", f"redis://:hidden@{NOBODY}/0"),
    (2, "REDIS_URL", "http://hidden"),
    (1, "REDIS_URL", "redis://127.0.0.1:hidden/0"),
    (1, "MAIL_URL", f"smtp://u:hidden@{NOBODY}"),
    (2, "MAIL_URL", "gopher://hidden"),
    (1, "MAIL_URL", "smtp://u:hidden@mail..example.com"),
    (2, "DATABASE_URL", "mysql://u:hidden@h/d"),
    (1, "DATABASE_URL", "postgresql://u:hidden@h:x/d"),
    (1, "DATABASE_URL", "postgresql://u@127.0.0.1/d?nonsense=hidden"),
]
UNREACHABLE = {
    "DATABASE_URL": f"postgresql://u:hidden@{NOBODY}/d",
    "REDIS_URL": f"redis://{NOBODY}/0",
    "MAIL_URL": f"smtp://{NOBODY}",
}
REFUSALS = [
    # the words, the settings, the exit code, and what the line has to name
    *[(words, {}, 2, said) for words, said in WRONG_WORDS.items()],
    *[(words, {"WORKRES": "3"}, 2, "VESTIBULE_WORKERS") for words in (*PLANS, "migrate", "reload", "check")],
    *[(words, {"MAIL_TEMPLATES": "/nowhere"}, 2, "VESTIBULE_MAIL_TEMPLATES") for words in (*PLANS, "config check")],
    *[(words, {"MAIL_FROM": "two@words and"}, 2, "VESTIBULE_MAIL_FROM") for words in (*PLANS, "config check")],
    *[(words, {}, 1, "VESTIBULE_DATABASE_URL") for words in (*PLANS[1:], "migrate", "check", "mail list")],
    *[
        (words, UNREACHABLE, 1, "VESTIBULE_DATABASE_URL")
        for words in (PLANS[0], "migrate", "mail list", "user delete a@example.com")
    ],
    *[("plan up start", {name: url}, code, f"VESTIBULE_{name}") for code, name, url in WRONG_URLS],
]


@pytest.mark.parametrize(("words", "settings", "code", "said"), REFUSALS)
def test_every_refusal_is_one_line(tmp_path: Path, words: str, settings: dict[str, str], code: int, said: str) -> None:
    """Wrong words, bad settings, missing servers and those out of reach; nothing is started and no secret repeated."""
    refused(vestibule(tmp_path, words, **settings), code, said)


def test_help_costs_no_import(tmp_path: Path) -> None:
    """The words are printed without loading settings, drivers or frameworks."""
    program = "import sys; from service.cli import main; main(['--help']); print(*sys.modules)"
    loaded = set(process(tmp_path, "-c", program).out.split())
    assert {"up", "serve", "worker", "migrate", "reload", "config", "check", "mail", "user"} <= loaded
    assert not {"pydantic", "psycopg", "redis", "quart", "anyio", "asyncio", "loguru"} & loaded


@pytest.mark.parametrize("words", ["", "mail", "user", "config"])
def test_without_a_command_the_commands_are_listed(tmp_path: Path, words: str) -> None:
    """The exit code says that nothing was done."""
    ended = vestibule(tmp_path, words)
    assert (ended.code, ended.err.partition(": ")[0]) == (2, "Usage")


def test_config_check_masks_secrets_and_prints_what_can_be_set_again(tmp_path: Path) -> None:
    """The printed settings show no secret; loaded again, they are the same settings."""
    ended = vestibule(
        tmp_path,
        "config check",
        DATABASE_URL="postgresql://u:hidden@h/d",
        CODE_KEYS=f"k1:{SECRET}",
        OPS_TOKEN="hidden",
        ACTIVATE_LIMIT="off",
        CODE_LIMITS="7/minute,9/day",
        TRUSTED_PROXIES="10.0.0.0/8,unix",
    )
    assert ended.code == 0
    assert not any(secret in ended.out for secret in ("hidden", SECRET))
    lines = dict(line.split("=", 1) for line in ended.out.splitlines())
    assert lines["VESTIBULE_DATABASE_URL"] == "***"
    again = load({name: value for name, value in lines.items() if value and "***" not in value})
    assert again.activate_limit is None
    assert {name: shown(name, value) for name, value in again} == {
        name.removeprefix("VESTIBULE_").lower(): "" if "***" in value else value for name, value in lines.items()
    }


def test_output_that_cannot_be_written_is_a_refusal(tmp_path: Path) -> None:
    """A full disk behind stdout is one line and exit code 1."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        refused(process(tmp_path, "-m", "service.cli", "config", "check", out=full.fileno()), 1, "space")


def test_an_unexpected_error_is_shown_without_its_text(tmp_path: Path) -> None:
    """Types and places are one line, as in the logs; a driver's text may hold what a user typed."""
    program = (
        "from service import cli\n"
        "@cli.vestibule.command()\n"
        "def broken(): raise ExceptionGroup('hidden', [LookupError('hidden')])\n"
        "raise SystemExit(cli.main(['broken']))"
    )
    refused(process(tmp_path, "-c", program), 1, "LookupError", "broken")


def test_check_says_of_each_server_what_is_wrong(tmp_path: Path, database: str, valkey: str, smtp: SmtpServer) -> None:
    """A line a server, and 1 when one fails; a test mail is sent on request."""
    urls = {"DATABASE_URL": database, "REDIS_URL": valkey}
    ended = vestibule(tmp_path, "check --send-to ann@example.com", **urls, MAIL_URL=smtp.url)
    assert ended == (0, "database: ok\nredis: ok\nmail server: ok\n", "")
    assert [mail.recipients for mail in smtp.wait_for(1)] == [("ann@example.com",)]
    ended = vestibule(tmp_path, "check", **urls, MAIL_URL=f"smtp://u:hidden@{NOBODY}")
    assert ended.out.startswith("database: ok\nredis: ok\nmail server: connection refused")
    assert (ended.code, ended.err, "hidden" in ended.out) == (1, "", False)


def test_a_taken_port_stops_up_before_any_server_is_started(tmp_path: Path) -> None:
    """The port is tried first, and the line names it."""
    with socket.create_server(("127.0.0.1", PORT)):
        refused(process(tmp_path, "-m", "service.cli", "up"), 1, str(PORT), "VESTIBULE_BIND")
    assert not (tmp_path / "data" / "postgres").exists()


def test_a_data_dir_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in its place is a refusal, not a traceback."""
    (tmp_path / "data").write_text("", encoding="utf-8")
    refused(process(tmp_path, "-m", "service.cli", "up"), 1, "data")


def test_up_in_a_terminal_is_told_to_write_for_people(tmp_path: Path) -> None:
    """LOG_FORMAT=text is the default there, and only there."""
    program = (
        "import os; from service import cli\n"
        "cli._supervise = lambda mode: print(mode, os.environ.get('VESTIBULE_LOG_FORMAT', 'unset'))\n"
        "raise SystemExit(cli.main(['up']))"
    )
    ours, theirs = pty.openpty()
    for settings, said in (({}, b"up text"), ({"LOG_FORMAT": "json"}, b"up json")):
        process(tmp_path, "-c", program, out=theirs, **settings)
        assert os.read(ours, 100).strip() == said
    os.close(ours)
    os.close(theirs)
    assert process(tmp_path, "-c", program).out.strip() == "up unset"


@pytest.mark.parametrize("left", [None, "1", "no pid"])
def test_reload_without_a_supervisor_says_so(tmp_path: Path, left: str | None) -> None:
    """No pid file, or one that nobody has locked: nobody is signalled."""
    if left is not None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "vestibule.pid").write_text(left, encoding="utf-8")
    refused(vestibule(tmp_path, "reload"), 1, "vestibule up")
