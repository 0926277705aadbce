#!/usr/bin/env python3
"""Lists owed mails, shows one, sends some again: `vestibule mail` over HTTP, for those without a shell on the host."""

from __future__ import annotations

import argparse
import json
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from remote import Unreachable, add_remote_options, remote_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remote import Remote

MAILS = "/api/v1/ops/mails"
EXAMPLES = """\
examples:
  python ops/mail.py list --state dead --since 2h
  python ops/mail.py show 0d3a6f1e-8f1c-4c53-9a3e-0c4f5be3c6aa
  python ops/mail.py replay --dead --since 2h --dry-run

exit status: 0, 1 when there was no such mail or nothing to send again, 3 without an answer from the service
"""
NOTHING, NO_ANSWER = 1, 3


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    options = argparse.ArgumentParser(
        prog="mail.py", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_remote_options(options)
    options.add_argument("--json", action="store_true", help="print what the service answers")
    after = argparse.ArgumentParser(add_help=False)  # the same behind the command, where hands put them
    for name, how in (("--url", "store"), ("--token", "store"), ("--json", "store_true")):
        after.add_argument(name, action=how, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    commands = options.add_subparsers(required=True, metavar="list|show|replay")
    listing = commands.add_parser("list", help="the newest mails, newest first", parents=[after])
    listing.add_argument("--state", help="queued, sending, accepted or dead")
    listing.add_argument("--since", help="90s, 30m, 2h, 1d ago, or a time like 2026-01-31T12:00:00Z")
    listing.add_argument("--limit", help="at most so many; 100")
    listing.set_defaults(run=list_mails)
    showing = commands.add_parser("show", help="one mail", parents=[after])
    showing.add_argument("id")
    showing.set_defaults(run=show_mail)
    replaying = commands.add_parser(
        "replay", help="queue mails again; a code that is too old is replaced", parents=[after]
    )
    which = replaying.add_mutually_exclusive_group(required=True)
    which.add_argument("--dead", action="store_true", help="all dead ones")
    which.add_argument("ids", nargs="*", default=[], metavar="ID")
    replaying.add_argument("--since", help="of the dead ones only those, as for list")
    replaying.add_argument("--dry-run", action="store_true", help="only tell which")
    replaying.set_defaults(run=replay)
    return options


def list_mails(remote: Remote, options: argparse.Namespace) -> int:
    """Print the mails that match."""
    wanted = {name: getattr(options, name) for name in ("state", "since", "limit") if getattr(options, name)}
    found = remote.said(remote.get(f"{MAILS}?{urlencode(wanted)}" if wanted else MAILS, ops=True))
    _print(found if options.json else "\n".join(map(line, found["mails"])) or "no mails")
    return 0


def show_mail(remote: Remote, options: argparse.Namespace) -> int:
    """Print one mail."""
    answer = remote.get(f"{MAILS}/{quote(options.id, safe='')}", ops=True)
    if answer.status == HTTPStatus.NOT_FOUND:
        print(f"mail.py: there is no mail {options.id}", file=sys.stderr)
        return NOTHING
    mail = remote.said(answer)
    _print(mail if options.json else "\n".join(f"{name:14}{'' if mail[name] is None else mail[name]}" for name in mail))
    return 0


def replay(remote: Remote, options: argparse.Namespace) -> int:
    """Queue mails again."""
    which: dict[str, object] = {"dead": True} if options.dead else {"ids": options.ids}
    since = {"since": options.since} if options.since else {}
    done = remote.said(remote.post(f"{MAILS}/replay", {**which, **since, "dry_run": options.dry_run}, ops=True))
    count = len(done["replayed"])
    told = f"{'would queue' if options.dry_run else 'queued'} {count} mail{'' if count == 1 else 's'} again"
    if options.ids and not count:
        told += ": nobody waits for any of these, or there is no such mail"
    _print(done if options.json else "\n".join([*done["replayed"], told]))
    return 0 if count else NOTHING


def line(mail: dict[str, Any]) -> str:
    """Return one mail as a line: id, state, attempts, when it was made, to whom, why it failed."""
    reason = f"  {mail['reason']}" if mail["reason"] else ""
    return f"{mail['id']}  {mail['state']:8} {mail['attempts']:3}x  {mail['created_at'][:19]}Z  {mail['to']}{reason}"


def _print(what: object) -> None:
    print(what if isinstance(what, str) else json.dumps(what, indent=2))


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the options say and return the exit status."""
    options = parser().parse_args(arguments)
    try:
        status: int = options.run(remote_of(options), options)
    except Unreachable as error:
        print(f"mail.py: {error}", file=sys.stderr)
        return NO_ANSWER
    return status


if __name__ == "__main__":
    sys.exit(main())
