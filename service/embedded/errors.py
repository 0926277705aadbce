"""What keeps the embedded servers from running, said in one line.

::

    BadEnvironment      the machine refuses something; the text says what to mend
    └── ServersMissing  no URL is set and no `vestibule up` runs that could lend its servers (service/servers.py)
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class BadEnvironment(Exception):
    """The machine refuses what a server needs; the text is one line that tells the operator what to mend."""


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals about `path` into BadEnvironment."""
    try:
        yield
    except OSError as error:
        raise BadEnvironment(explain(error, path)) from None


def explain(error: OSError, path: Path) -> str:
    """Return one line about a refusal of the operating system."""
    if error.errno in NO_SPACE:
        return no_space(path)
    return f"cannot write to {path}: {error.strerror or type(error).__name__}"


def no_space(path: Path) -> str:
    """Return the line for a full disk."""
    return f"no space left for {path}: the embedded servers need about 100 MB to begin with"
