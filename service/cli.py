"""The console command `vestibule`; every refusal ends as one line on stderr.

Imports stand inside the commands: each pays for its own only, and `--help` for none. All of them are in this one module
because each is a few lines that call the package which does the work: it reads as the list that `--help` prints.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from actors.domain.mail import MailState
from service.processes.listener import CannotStart

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime
    from uuid import UUID

    from service.postgres.mail_admin import MailEntry, PostgresMailAdmin
    from service.settings import Settings

ResultT = TypeVar("ResultT")

REFUSED, BAD_SETTINGS = 1, 2  # exit codes
LOG_FORMAT = "VESTIBULE_LOG_FORMAT"
MOST_LISTED = MOST_REPLAYED = 10_000  # in one call; a repeated replay takes the next ones

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vestibule", message="%(version)s")
def vestibule() -> None:
    """Self-hosted sign-up: register, mail a short code, activate. Settings come from VESTIBULE_… variables."""


# -- processes --------------------------------------------------------------------------------------------------------


@vestibule.command()
def up() -> None:
    """Run everything on this machine: embedded servers where no URL is set, migrations, API, mail worker."""
    if sys.stdout.isatty() and not os.environ.get(LOG_FORMAT) and not os.environ.get(f"{LOG_FORMAT}_FILE"):
        os.environ[LOG_FORMAT] = "text"  # a person reads it; the processes below inherit it
    _supervise("up")


@vestibule.command()
def serve() -> None:
    """Run the API processes on servers that are there already."""
    _supervise("serve")


def _supervise(mode: str) -> NoReturn:
    from service.processes.spawn import supervise

    supervise(mode)


@vestibule.command()
@click.option("--supervised", is_flag=True, hidden=True)
@click.option("--pipe", type=int, hidden=True)
def worker(*, supervised: bool, pipe: int | None) -> None:
    """Run one mail worker."""
    if not supervised:
        _supervise("worker")
    settings = _settings()  # before a driver is imported: see its check of the traces' variables
    from service.processes.imports import import_without

    import_without("redis", "opentelemetry.sdk.metrics")
    import_without("taskiq", "aiohttp")
    from functools import partial

    from service.embedded.servers import resolve
    from service.mail.worker import run
    from service.processes.spawn import set_title
    from service.processes.worker import beating

    set_title("mail worker")
    run(settings, resolve(settings), None if pipe is None else partial(beating, pipe))


@vestibule.command(hidden=True)
@click.argument("mode")
@click.argument("step")
@click.argument("running", nargs=-1)
def plan(mode: str, step: str, running: tuple[str, ...]) -> None:
    """Do a step of the supervisor's plan."""
    settings = _settings()
    from service.embedded.plan import describe, prepare

    if step == "prepare":
        prepare(settings, dict(one.split("=") for one in running))
    else:
        click.echo(json.dumps(describe(settings, mode, step)))


@vestibule.command(hidden=True)
@click.option("--number", type=int, required=True)
@click.option("--listener", type=int, required=True)
@click.option("--pipe", type=int, required=True)
def generation(number: int, listener: int, pipe: int) -> None:
    """Run one generation of API workers."""
    settings = _settings()
    from service.processes.imports import import_without

    import_without("redis", "opentelemetry.sdk.metrics")
    from service import wiring
    from service.embedded.servers import resolve
    from service.passwords import common_passwords
    from service.processes.generation import Generation
    from service.processes.spawn import set_title

    set_title(f"generation {number}")
    servers = resolve(settings)
    common_passwords()  # read once, and shared by all workers
    os._exit(Generation(settings, listener, pipe, lambda *names: wiring.api(settings, servers, *names)).run())


@vestibule.command(hidden=True)
@click.argument("name")
def server(name: str) -> None:
    """Become an embedded server; a signal before that ends it at once and says nothing."""
    from service.embedded.servers import embedded

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    found = {one.name: one for one in embedded(_settings())}
    found[name].become(os.getppid())


@vestibule.command()
def reload() -> None:
    """Have the running `up` or `serve` of DATA_DIR start anew with new code and settings."""
    from service.processes.supervisor import reload as ask

    click.echo(f"asked process {ask(_settings().data_dir)} to reload; its log says how it went")


# -- checks -----------------------------------------------------------------------------------------------------------


@vestibule.command()
def migrate() -> None:
    """Bring the database to this version."""
    from service.embedded.plan import bring_up
    from service.embedded.servers import plain, resolve

    settings = _settings()
    done = bring_up(plain(settings.database_url) or resolve(settings).database_url)
    click.echo("\n".join(f"applied {name}" for name in done) or "nothing to do")


@vestibule.group()
def config() -> None:
    """Look at the settings."""


@config.command("check")
def config_check() -> None:
    """Validate and print the settings, secrets masked."""
    from service.settings import PREFIX, shown

    for name, value in _settings():
        click.echo(f"{PREFIX}{name.upper()}={shown(name, value)}")


@vestibule.command()
@click.option("--send-to", metavar="ADDRESS", help="Also send a test mail.")
def check(send_to: str | None) -> None:
    """Try every server as it is configured; end with 1 if one fails."""
    from service.embedded.plan import check as try_servers
    from service.embedded.servers import resolve

    settings = _settings()
    failed = False
    for name, fault in try_servers(settings, resolve(settings), send_to):
        click.echo(f"{name}: {fault or 'ok'}")
        failed = failed or fault is not None
    raise SystemExit(REFUSED if failed else 0)


# -- the mail queue and accounts --------------------------------------------------------------------------------------


@vestibule.group()
def mail() -> None:
    """Look after the mail queue."""


@mail.command("list")
@click.option("--state", type=click.Choice([state.value for state in MailState]), help="Only mails in this state.")
@click.option("--since", help="Created since: 90s, 30m, 2h, 1d ago, or a time.")
@click.option("--limit", type=click.IntRange(1, MOST_LISTED), default=100, show_default=True)
@json_option
def mail_list(state: str | None, since: str | None, limit: int, *, as_json: bool) -> None:
    """List the newest mails; never a code."""
    when = _since(since)
    mails = _with_admin(lambda admin: admin.mails(state=state, since=when, limit=limit))
    if as_json:
        click.echo(_json([asdict(one) for one in mails]))
    else:
        click.echo("\n".join(map(_mail_line, mails)) or "no mails")


@mail.command("show")
@click.argument("mail_id", type=click.UUID)
@json_option
def mail_show(mail_id: UUID, *, as_json: bool) -> None:
    """Show one mail."""
    mails = _with_admin(lambda admin: admin.mails(mail_id=mail_id))
    if not mails:
        _nothing("no mail has this id")
    click.echo(_json(asdict(mails[0])) if as_json else _fields(asdict(mails[0])))


@mail.command("replay")
@click.argument("mail_id", type=click.UUID, required=False)
@click.option("--dead", is_flag=True, help="All dead mails.")
@click.option("--since", help="With --dead: created since.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
def mail_replay(mail_id: UUID | None, since: str | None, *, dead: bool, dry_run: bool, as_json: bool) -> None:
    """Owe a mail again, or all dead ones, under fresh codes."""
    if (mail_id is None) != dead:
        raise click.UsageError("name either one mail's id or --dead")
    when = _since(since)

    async def replay(admin: PostgresMailAdmin) -> list[UUID]:
        mails = await admin.mails(state="dead", since=when, limit=MOST_REPLAYED) if dead else []
        ids = [one.id for one in mails] if mail_id is None else [mail_id]
        return await admin.replay(ids, dry_run=dry_run)

    replayed = _with_admin(replay)
    if as_json:
        click.echo(_json({"dry_run": dry_run, "replayed": replayed}))
    elif replayed or dead:
        count = f"{len(replayed)} mail{'' if len(replayed) == 1 else 's'}"
        click.echo(f"{'would queue' if dry_run else 'queued'} {count} again")
    else:
        _nothing("no mail with this id is waited for: see `vestibule mail show` and `vestibule user show`")


@vestibule.group()
def user() -> None:
    """Look after single accounts."""


@user.command("show")
@click.argument("email")
@json_option
def user_show(email: str, *, as_json: bool) -> None:
    """Show one account, without code and password hash."""
    key, policy = _key(email), _settings().code_policy
    account = _with_admin(lambda admin: admin.show(key))
    if account is None:
        _nothing("no account has this address")
    entry = {
        "id": account.id,
        "email": account.email,
        "locale": account.locale,
        "created_at": account.created_at,
        "registered_at": account.registered_at,
        "activated_at": account.activated_at,
        "state": account.state(policy),
        "code_expires_in": account.code_expires_in(),
        "attempts_left": account.attempts_left(policy),
        "codes_left_today": policy.codes_left_today(account.code_ages()),
    }
    click.echo(_json(entry) if as_json else _fields(entry))


def _account_command(name: str, done: str, nothing: str, help_: str) -> None:
    """Add a command that does one thing to one account."""

    @user.command(name, help=help_)
    @click.argument("email")
    def run(email: str) -> None:
        key = _key(email)
        if not _with_admin(lambda admin: getattr(admin, name)(key)):
            _nothing(nothing)
        click.echo(done)


_account_command("activate", "activated", "no pending account has this address", "Activate an account without a code.")
_account_command(
    "resend", "a new code is on its way", "no pending account has this address", "Issue a new code beside all limits."
)
_account_command("delete", "deleted", "no account has this address", "Delete an account with all that is known of it.")


# -- what the commands share ------------------------------------------------------------------------------------------


def _settings() -> Settings:
    from service.mail import transport
    from service.settings import load
    from service.telemetry import tracing

    settings = load(os.environ)
    tracing.check(os.environ)
    transport.check(settings)
    return settings


def _with_admin(work: Callable[[PostgresMailAdmin], Awaitable[ResultT]]) -> ResultT:
    import anyio

    from actors.kit.mailbox import MachineError
    from service.embedded.plan import migrated
    from service.embedded.servers import code_keys, plain, resolve
    from service.postgres.mail_admin import PostgresMailAdmin
    from service.postgres.pool import Postgres

    settings = _settings()
    url = plain(settings.database_url) or resolve(settings).database_url
    migrated(url)

    async def run() -> ResultT:
        async with Postgres.open(url) as postgres:
            key_id = next(iter(code_keys(settings)))
            return await work(PostgresMailAdmin(postgres, settings.code_policy, key_id))

    try:
        return anyio.run(run)
    except* MachineError:
        raise CannotStart("the database does not answer") from None


def _key(text: str) -> str:
    from actors.domain.errors import InvalidEmail
    from service.passwords import EmailAddresses

    try:
        return EmailAddresses().read(text).key
    except InvalidEmail as refusal:
        raise click.UsageError(refusal.message) from None


def _since(text: str | None) -> datetime | None:
    from service.setting_values import moment

    try:
        return None if text is None else moment(text)
    except ValueError as error:
        raise click.UsageError(f"--since {error}") from None


def _mail_line(one: MailEntry) -> str:
    accepted = f" accepted {one.accepted_at:%H:%M:%S}" if one.accepted_at else ""
    reason = f"  {one.reason}" if one.reason else ""
    created = f"{one.created_at:%Y-%m-%d %H:%M:%S}"
    return f"{one.id}  {one.state:10} {one.kind:6} {one.attempts:3}x  {created}{accepted}  {one.to}{reason}"


def _fields(entry: dict[str, Any]) -> str:
    return "\n".join(f"{name:18}{'' if value is None else value}" for name, value in entry.items())


def _json(value: object) -> str:
    return json.dumps(value, indent=2, default=lambda other: getattr(other, "isoformat", other.__str__)())


def _nothing(text: str) -> NoReturn:
    raise CannotStart(text)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command, that of this process without `words`; return the exit code."""
    _open_closed_streams()
    try:
        vestibule.main(words, standalone_mode=False)
        sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):  # a stop before anything was accepted: an orderly end
        return 0
    except Exception as error:  # noqa: BLE001 - the edge: no traceback, whose texts may hold what a user typed
        return _explain(error)
    return 0


def _open_closed_streams() -> None:
    """Open what the caller closed (`>&-`): else a socket gets its number, and lines of the log would go there."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(descriptor, True)  # noqa: FBT003 - the library's signature
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open to the end
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open to the end


def _explain(error: Exception) -> int:
    """Write why the command has failed; return the exit code."""
    from service.settings import SettingsError

    match error:
        case click.exceptions.NoArgsIsHelpError():
            sys.stderr.write(f"{error.format_message()}\n")
            return BAD_SETTINGS
        case click.ClickException():
            return _refuse(error.format_message(), BAD_SETTINGS)
        case SettingsError():
            return _refuse(str(error), BAD_SETTINGS)
        case CannotStart():
            return _refuse(str(error), error.code)
        case OSError():
            with suppress(OSError):  # what stdout would not take must not fail again at the end
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            where = f"{error.filename}: " if error.filename else ""
            return _refuse(f"{where}{error.strerror or type(error).__name__}", REFUSED)
    from service.logging import describe

    return _refuse(f"unexpected error {json.dumps(describe(error))}", REFUSED)


def _refuse(reason: str, code: int) -> int:
    sys.stderr.write(f"vestibule: {' '.join(reason.split())}\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
