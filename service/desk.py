"""`vestibule mail …` and `vestibule user …`: the operator's hand on the mail queue and on single accounts."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID, uuid4

import anyio

from actors.domain.code import Keyring
from actors.domain.errors import InvalidEmail
from actors.kit.mailbox import MachineError
from service.adapters.email_addresses import EmailAddresses
from service.adapters.postgres import Postgres
from service.adapters.postgres_codes import CodePolicy
from service.adapters.postgres_desk import PostgresDesk
from service.embedded.errors import BadEnvironment
from service.moments import moment
from service.reachable import migrated
from service.servers import code_keys, plain, resolve
from service.settings import read

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from service.adapters.postgres_desk import MailEntry, UserEntry
    from service.settings import Settings

ResultT = TypeVar("ResultT")

NOTHING_FOUND = 1  # exit code: the words were right, and nothing matched
MOST_LISTED, MOST_REPLAYED = 10_000, 10_000  # in one call; a repeated replay takes the next ones


class WrongWords(BadEnvironment):
    """The words after the command make no sense together; the text is one line."""


def mail_list(words: argparse.Namespace) -> int:
    """Print the newest mails: id, state, attempts, times, recipient, reason; never a code."""
    if not 1 <= words.limit <= MOST_LISTED:
        raise WrongWords(f"--limit must be a number from 1 to {MOST_LISTED}")
    since = _since(words.since)
    mails = _at_the_desk(lambda desk, _: desk.mails(state=words.state, since=since, limit=words.limit))
    if words.json:
        _print(_json([asdict(mail) for mail in mails]))
    else:
        _print("\n".join(map(_mail_line, mails)) or "no mails")
    return 0


def mail_show(words: argparse.Namespace) -> int:
    """Print one mail."""
    mails = _at_the_desk(lambda desk, _: desk.mails(mail_id=_uuid(words.id)))
    if not mails:
        return _nothing("no mail has this id")
    _print(_json(asdict(mails[0])) if words.json else _fields(asdict(mails[0])))
    return 0


def mail_replay(words: argparse.Namespace) -> int:
    """Queue mails again: the one named, or all dead ones (`--dead`), since some time (`--since`)."""
    if bool(words.id) == words.dead:
        raise WrongWords("name either one mail's id or --dead")
    since = _since(words.since)

    async def replay(desk: PostgresDesk, _: Settings) -> list[UUID]:
        dead = await desk.mails(state="dead", since=since, limit=MOST_REPLAYED) if words.dead else []
        ids = [mail.id for mail in dead] or ([_uuid(words.id)] if words.id else [])
        return await desk.replay(ids, dry_run=words.dry_run)

    replayed = _at_the_desk(replay)
    found = bool(replayed) or words.dead
    if words.json:
        _print(_json({"dry_run": words.dry_run, "replayed": replayed}))
    elif found:
        count = f"{len(replayed)} mail{'' if len(replayed) == 1 else 's'}"
        _print(f"{'would queue' if words.dry_run else 'queued'} {count} again")
    else:
        return _nothing("no mail with this id is waited for: see `vestibule mail show` and `vestibule user show`")
    return 0 if found else NOTHING_FOUND


def user_show(words: argparse.Namespace) -> int:
    """Print one account, without code and password hash."""
    key = _key(words.email)
    user: UserEntry | None = _at_the_desk(lambda desk, _: desk.show(key))
    if user is None:
        return _nothing("no account has this address")
    _print(_json(asdict(user)) if words.json else _fields(asdict(user)))
    return 0


def user_activate(words: argparse.Namespace) -> int:
    """Activate a pending account without a code."""
    key = _key(words.email)
    return _done(_at_the_desk(lambda desk, _: desk.activate(key)), "activated", "no pending account has this address")


def user_resend(words: argparse.Namespace) -> int:
    """Issue a new code for a pending account, beside all limits."""
    key = _key(words.email)

    async def resend(desk: PostgresDesk, settings: Settings) -> bool:
        return await desk.resend(key, Keyring(code_keys(settings)).code_id(uuid4()), uuid4())

    return _done(_at_the_desk(resend), "a new code is on its way", "no pending account has this address")


def user_delete(words: argparse.Namespace) -> int:
    """Delete an account with everything that is known of it."""
    key = _key(words.email)
    return _done(_at_the_desk(lambda desk, _: desk.delete(key)), "deleted", "no account has this address")


def _since(text: str | None) -> datetime | None:
    try:
        return None if text is None else moment(text)
    except ValueError as error:
        raise WrongWords(f"--since {error}") from None


def _at_the_desk(work: Callable[[PostgresDesk, Settings], Awaitable[ResultT]]) -> ResultT:
    settings = read(os.environ)
    url = plain(settings.database_url) or resolve(settings).database_url
    migrated(url)

    async def run() -> ResultT:
        async with Postgres.open(url, size=1) as postgres:
            return await work(PostgresDesk(postgres, CodePolicy.of(settings)), settings)

    try:
        return anyio.run(run)
    except* MachineError:
        raise BadEnvironment("the database does not answer") from None
    except* BadEnvironment as refusals:
        raise refusals.exceptions[0] from None


def _key(text: str) -> str:
    try:
        return EmailAddresses().read(text).key
    except InvalidEmail as refusal:
        raise WrongWords(refusal.message) from None


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise WrongWords("a mail's id looks like 123e4567-e89b-42d3-a456-426614174000") from None


def _mail_line(mail: MailEntry) -> str:
    accepted = f" accepted {mail.accepted_at:%H:%M:%S}" if mail.accepted_at else ""
    reason = f"  {mail.reason}" if mail.reason else ""
    created = f"{mail.created_at:%Y-%m-%d %H:%M:%S}"
    return f"{mail.id}  {mail.state:8} {mail.kind:6} {mail.attempts:3}x  {created}{accepted}  {mail.to}{reason}"


def _fields(entry: dict[str, Any]) -> str:
    return "\n".join(f"{name:18}{'' if value is None else value}" for name, value in entry.items())


def _json(value: object) -> str:
    return json.dumps(
        value, indent=2, default=lambda other: other.isoformat() if isinstance(other, datetime) else str(other)
    )


def _done(done: bool, good: str, nothing: str) -> int:  # noqa: FBT001 - the outcome of one call
    if not done:
        return _nothing(nothing)
    _print(good)
    return 0


def _nothing(text: str) -> int:
    sys.stderr.write(f"vestibule: {text}\n")
    return NOTHING_FOUND


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
