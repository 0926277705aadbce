"""Who the embedded PostgreSQL runs as: it refuses root, and needs a user that the machine knows by name."""

from __future__ import annotations

import os
import pwd
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from service.embedded.errors import BadEnvironment
from service.embedded.spawn import LIBC, Program, call, spawn, stay

if TYPE_CHECKING:
    from collections.abc import Callable

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
        pid = spawn(Program(argv, {}, way.enter), output)
    finally:
        os.close(output)
    return os.waitpid(pid, 0)[1] == 0


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
