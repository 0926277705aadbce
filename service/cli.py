"""The console command `vestibule`: its words only, so that `--help` and a typing error cost no import."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Option(NamedTuple):
    """One argument of a command, as argparse takes it."""

    name: str
    help: str
    more: Mapping[str, Any] = MappingProxyType({})


class Command(NamedTuple):
    """One word after `vestibule`: what it promises, and `module:function` that takes the parsed words."""

    word: str
    help: str
    runs: str
    hidden_flags: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()


COMMANDS = (
    Command("up", "everything on one machine: servers where no URL is set, API and mail workers", "service.up:up"),
    Command("serve", "API workers only", "service.commands:serve"),
    Command("worker", "one mail worker", "service.commands:worker", ("--supervised",)),
    Command("migrate", "bring the database to this version", "service.commands:migrate"),
    Command("reload", "new code and settings for the running master, no request lost", "service.commands:reload"),
)
CONFIG = (
    Command(
        "check",
        "validate the settings and print them, secrets masked",
        "service.commands:check",
        ("--trial", "--migrate"),
    ),
)
JSON = Option("--json", "print JSON", {"action": "store_true"})
SINCE = Option("--since", "created since: 90s, 30m, 2h, 1d ago, or a time like 2026-01-31T12:00:00Z")
ADDRESS = Option("email", "the account's address")
STATES = ("queued", "sending", "accepted", "dead")
MAIL = (
    Command(
        "list",
        "the newest mails",
        "service.desk:mail_list",
        options=(
            Option("--state", "only mails in this state", {"choices": STATES}),
            SINCE,
            Option("--limit", "at most so many (100)", {"type": int, "default": 100}),
            JSON,
        ),
    ),
    Command("show", "one mail", "service.desk:mail_show", options=(Option("id", "the mail's id"), JSON)),
    Command(
        "replay",
        "queue mails again that somebody may still wait for; a stale code is replaced",
        "service.desk:mail_replay",
        options=(
            Option("id", "the mail's id", {"nargs": "?"}),
            Option("--dead", "all dead ones", {"action": "store_true"}),
            SINCE,
            Option("--dry-run", "only say how many", {"action": "store_true"}),
            JSON,
        ),
    ),
)
USER = (
    Command("show", "one account, without its secrets", "service.desk:user_show", options=(ADDRESS, JSON)),
    Command("activate", "activate an account without a code", "service.desk:user_activate", options=(ADDRESS,)),
    Command("resend", "send a new code, beside all limits", "service.desk:user_resend", options=(ADDRESS,)),
    Command("delete", "delete an account and its mails", "service.desk:user_delete", options=(ADDRESS,)),
)
GROUPS: tuple[tuple[str, str, tuple[Command, ...]], ...] = (
    ("config", "the settings", CONFIG),
    ("mail", "the mail queue", MAIL),
    ("user", "one account", USER),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all words; each leaf sets `runs`."""
    whole = argparse.ArgumentParser(prog="vestibule", description="Self-hosted sign-up with e-mailed codes.")
    whole.add_argument("--version", action="store_true", help="print the version and exit")
    whole.set_defaults(runs=None)
    words = whole.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        _add(words, command)
    for word, text, commands in GROUPS:
        group = words.add_parser(word, help=text, description=text)
        inner = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
        for command in commands:
            _add(inner, command)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 1 when the machine or a server refuses, 2 for words and settings."""
    whole = parser()
    words = whole.parse_args(arguments)
    if words.version:
        return _version()
    if words.runs is None:
        whole.print_help(sys.stderr)
        return 2
    from service.commands import guarded  # noqa: PLC0415 - only now is anything else needed

    return guarded(_find(words.runs), words)


def _add(words: argparse._SubParsersAction[argparse.ArgumentParser], command: Command) -> None:
    one = words.add_parser(command.word, help=command.help, description=command.help)
    for flag in command.hidden_flags:
        one.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    for option in command.options:
        one.add_argument(option.name, help=option.help, **option.more)
    one.set_defaults(runs=command.runs)


def _version() -> int:
    from importlib.metadata import version  # noqa: PLC0415 - as above

    sys.stdout.write(f"vestibule {version('vestibule')}\n")
    return 0


def _find(runs: str) -> Callable[[argparse.Namespace], int]:
    module, _, function = runs.partition(":")
    found: Callable[[argparse.Namespace], int] = getattr(import_module(module), function)
    return found


if __name__ == "__main__":
    sys.exit(main())
