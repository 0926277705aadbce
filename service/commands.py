"""What the words of the console command do, but for `up`; every refusal ends as one line on stderr."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from actors.domain.windows import Rule
from service.adapters.postgres_migrations import MigrationError
from service.children import vestibule
from service.embedded.errors import BadEnvironment
from service.listener import CannotStart
from service.log_exceptions import describe
from service.setting_values import PERIODS
from service.settings import PREFIX, BadSettings, Settings, read
from service.tracing.choice import choose, keep_out
from service.tracing.tracing import untraced

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Callable, Mapping

    from service.servers import Servers
    from service.supervise import Build
    from service.tracing.tracing import Opening

REFUSED, BAD_SETTINGS = 1, 2  # exit codes
TRIAL = ("config", "check", "--trial")  # what must succeed before the master follows SIGHUP


def guarded(command: Callable[[argparse.Namespace], int], words: argparse.Namespace) -> int:
    """Run a command and return its exit code; a refusal is one line on stderr, never a traceback."""
    keep_out(os.environ)
    try:
        code = command(words)
        sys.stdout.flush()
    except BadSettings as refusal:
        return _refuse(refusal, BAD_SETTINGS)
    except (CannotStart, BadEnvironment, MigrationError) as refusal:
        return _refuse(refusal, REFUSED)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what stdout would not take must not fail again at the end
        where = f"{error.filename}: " if error.filename else ""
        return _refuse(f"{where}{error.strerror or type(error).__name__}", REFUSED)
    except KeyboardInterrupt:  # told to stop before anything was accepted: an orderly end
        return 0
    except Exception as error:  # noqa: BLE001 - the edge: no traceback, whose texts may hold what a user typed
        return _refuse(f"unexpected error {json.dumps(describe(error))}", REFUSED)
    return code


def checked() -> Settings:
    """Return the settings; raises BadSettings also for a sender or a template that could make no mail."""
    from service.mailer import postman  # noqa: PLC0415 - each command pays for its own imports only

    settings = read(os.environ)
    postman.check(settings)
    return settings


def serve(_words: argparse.Namespace) -> int:
    """Run API workers on servers that are there already."""
    from service import handover, logs  # noqa: PLC0415 - each command pays for its own imports only
    from service.pid_file import pid_file  # noqa: PLC0415 - as above
    from service.reachable import look, migrated  # noqa: PLC0415 - as above
    from service.servers import code_keys, resolve  # noqa: PLC0415 - as above
    from service.starting import starting  # noqa: PLC0415 - as above
    from service.supervise import api_posts, listener_for, supervise  # noqa: PLC0415 - as above

    taken = handover.take(os.environ)
    with starting(taken) as terminal:
        settings = checked()
        tracing = choose(os.environ)
        logs.configure(settings, "master", threaded=False)
        servers = resolve(settings)
        if taken is None:
            look(database_url=servers.database_url, redis_url=servers.redis_url)
            migrated(servers.database_url)
        listener = listener_for(settings, taken)
        posts = api_posts(settings, listener, api(settings, servers, code_keys(settings), tracing))
    with pid_file(settings.data_dir):
        return supervise(
            settings, posts, listener, trial=vestibule(*TRIAL), announce=_serving, terminal=terminal, taken=taken
        )


def api(settings: Settings, servers: Servers, keys: Mapping[str, bytes], tracing: Opening = untraced) -> Build:
    """Return what builds the app of one worker, with all that it needs imported before the fork."""
    from service.http.app import create_app  # noqa: PLC0415 - as above
    from service.wiring import running  # noqa: PLC0415 - as above

    @asynccontextmanager
    async def build(name: str, lost_lines: Callable[[], int]) -> AsyncIterator[tuple[Any, Callable[[], None]]]:
        async with tracing(name) as traces, running(settings, servers, name, keys, traces, lost_lines) as service:
            yield traces.application(create_app(settings, service)), service.health.drain

    return build


def worker(words: argparse.Namespace) -> int:
    """Run one mail worker; under a master its servers may be away for a while."""
    from service.mailer.worker import run  # noqa: PLC0415 - as above
    from service.pulse import inherited  # noqa: PLC0415 - as above
    from service.reachable import look, migrated  # noqa: PLC0415 - as above
    from service.servers import resolve  # noqa: PLC0415 - as above

    settings = read(os.environ)
    tracing = choose(os.environ)
    servers = resolve(settings)
    if not words.supervised:
        look(database_url=servers.database_url, redis_url=servers.redis_url, mail_url=servers.mail_url)
        migrated(servers.database_url)
    run(settings, servers, tracing, inherited(os.environ))
    return 0


def migrate(_words: argparse.Namespace) -> int:
    """Bring the database to this version and say what was done."""
    from service.adapters import postgres_migrations  # noqa: PLC0415 - as above
    from service.reachable import look  # noqa: PLC0415 - as above
    from service.servers import plain, resolve  # noqa: PLC0415 - as above

    settings = read(os.environ)
    url = plain(settings.database_url) or resolve(settings).database_url
    look(database_url=url)
    done = postgres_migrations.migrate(url)
    sys.stdout.write("".join(f"applied {name}\n" for name in done) or "nothing to do\n")
    return 0


def reload(_words: argparse.Namespace) -> int:
    """Ask the master of DATA_DIR to take new code and settings."""
    from service.pid_file import FILE, master_of  # noqa: PLC0415 - as above

    data_dir = read(os.environ).data_dir
    pid = master_of(data_dir)
    if pid is None:
        raise CannotStart(f"no running vestibule in {data_dir / FILE}")
    try:
        os.kill(pid, signal.SIGHUP)
    except PermissionError:
        raise CannotStart(f"the master (pid {pid}) belongs to another user") from None
    sys.stdout.write(f"asked the master (pid {pid}); its log tells how it went\n")
    return 0


def check(words: argparse.Namespace) -> int:
    """Validate the settings and print them, secrets masked; as a trial of a reload also try code and servers."""
    settings = checked()
    choose(os.environ)
    if words.trial:
        from service.trial import attempt  # noqa: PLC0415 - as above

        attempt(settings, migrating=words.migrate)
    sys.stdout.write("".join(f"{PREFIX}{name.upper()}={shown(name, value)}\n" for name, value in settings))
    return 0


def shown(name: str, value: object) -> str:
    """Return a setting as it would be written in the environment; secrets as ***, nothing for what is unset."""
    if name.endswith(("_limit", "_limits")) and not value:
        return "off"
    match value:
        case None:
            text = ""
        case SecretStr():
            text = "***"
        case dict():
            text = ",".join(f"{kid}:***" for kid in value)
        case bool():
            text = "1" if value else "0"
        case tuple():
            text = ",".join(shown("", one) for one in value)
        case Rule():
            text = f"{value.limit}/{next(word for word, seconds in PERIODS.items() if seconds == value.seconds)}"
        case _:
            text = str(value)
    return text


def _serving(address: str) -> None:
    with suppress(OSError):  # nobody has to read it
        sys.stdout.write(f"Vestibule serves on {address}\n")
        sys.stdout.flush()


def _refuse(reason: object, code: int) -> int:
    line = " ".join(str(reason).split())
    sys.stderr.write(f"vestibule: {line}\n")
    return code
