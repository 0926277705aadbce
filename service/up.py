"""`vestibule up`: everything on one machine, from an empty folder to a page that can be opened."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

from loguru import logger

from service import handover, logs
from service.adapters.postgres_migrations import migrate
from service.children import Child, Post, vestibule
from service.commands import TRIAL, api, checked
from service.embedded import data_dir, launcher
from service.pid_file import pid_file
from service.reachable import look
from service.roster import SERVER_GRACE_SECONDS
from service.servers import announce, code_keys, embedded, gather, plain, withdraw
from service.starting import starting
from service.supervise import MAIL, SERVERS, api_posts, execute_worker, listener_for, supervise
from service.tracing.choice import choose

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from service.embedded.launcher import ServerProcess
    from service.settings import Settings

AGAIN_SECONDS = 0.1  # for the remains of a killed server: the master looks after others, and comes back
PAGES = {"sign-up page": "/", "API": "/docs", "mails": "/dev/mail", "dashboard": "/ops", "metrics": "/metrics"}


def up(_words: argparse.Namespace) -> int:
    """Run it all until SIGTERM or SIGINT; returns the exit code."""
    taken = handover.take(os.environ)
    with ExitStack() as undo:
        with starting(taken) as terminal:
            settings = checked()
            tracing = choose(os.environ)
            logs.configure(settings, "master", threaded=False)
            claim = _claim(settings, taken)
            listener = listener_for(settings, taken)
            servers = embedded(settings)
            posts = [_server_post(server, SERVERS + place) for place, server in enumerate(reversed(servers))][::-1]
            if taken is None:
                look(**{name: plain(getattr(settings, name)) for name in ("database_url", "redis_url", "mail_url")})
                _start(servers, posts, undo)
            where = gather(settings, servers)
            # It imports for half a second: the servers get ready meanwhile.
            build = api(settings, where, code_keys(settings), tracing)
            if taken is None:
                _await(servers, posts)
                migrate(where.database_url)
            announce(settings.data_dir, where)
            undo.callback(withdraw, settings.data_dir)
            posts += api_posts(settings, listener, build)
            posts += [_mail_post(number, settings) for number in range(1, settings.mail_workers + 1)]
        with pid_file(settings.data_dir):
            return supervise(
                settings,
                posts,
                listener,
                trial=vestibule(*TRIAL, "--migrate"),
                announce=partial(_guide, settings),
                terminal=terminal,
                claim=claim,
                taken=taken,
            )


def _claim(settings: Settings, taken: handover.Handover | None) -> int:
    if taken is not None and taken.claim is not None:
        return taken.claim
    return data_dir.claim(settings.data_dir)


def _start(servers: Sequence[ServerProcess], posts: Sequence[Post], undo: ExitStack) -> None:
    """Start the servers; what was started is stopped again, in the reverse order, if a later step fails."""
    for server, post in zip(servers, posts, strict=True):
        post.child = _started(server, server.start())
        undo.callback(_stop_if_running, post, server)


def _await(servers: Sequence[ServerProcess], posts: Sequence[Post]) -> None:
    for server, post in zip(servers, posts, strict=True):
        if post.child is not None:
            server.wait_ready(post.child.pid)
            logger.info("started", child=post.name, pid=post.child.pid)


def _stop_if_running(post: Post, server: ServerProcess) -> None:
    if post.child is not None:
        launcher.stop(post.child.pid, server.stop_signal)


def _server_post(server: ServerProcess, tier: int) -> Post:
    def start() -> Child:
        return _started(server, server.start(AGAIN_SECONDS))

    return Post(server.name, tier, start, SERVER_GRACE_SECONDS, ends=server.stop_signal, renew=False)


def _started(server: ServerProcess, pid: int) -> Child:
    now = time.monotonic()
    return Child(server.name, pid, now, now, ready=True)


def _mail_post(number: int, settings: Settings) -> Post:
    name, words = f"mail-{number}", vestibule("worker", "--supervised")
    return Post(name, MAIL, lambda: execute_worker(name, words), settings.grace_seconds)


def _guide(settings: Settings, address: str) -> None:
    """Tell a person what there is to open; nobody has to read it."""
    caught = settings.mail_url is None
    pages = [(name, path) for name, path in PAGES.items() if address.startswith("http") and (caught or name != "mails")]
    lines = [f"Vestibule runs on {address}", *(f"  {name:13}{address}{path}" for name, path in pages)]
    with suppress(OSError):
        sys.stdout.write("\n".join([*lines, "Stop it with Ctrl-C.\n"]))
        sys.stdout.flush()
