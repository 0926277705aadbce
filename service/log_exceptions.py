"""Describes an exception for a log: types and places of the code, and never what a user sent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.kit.supervisor import TooManyCrashes

if TYPE_CHECKING:
    from types import TracebackType

MOST = 8  # exceptions of one chain or group: more tell nothing new
DEEPEST = 40  # frames of one exception, the innermost: a recursion must not fill the log
TOLD = (TooManyCrashes,)  # exceptions whose text is our own
ROOT = str(Path(__file__).resolve().parents[1]) + "/"


def describe(error: BaseException) -> list[dict[str, Any]]:
    """Return the error and what led to it, each with its type and its stack as `file:line:function`, innermost last.

    A text is added only where it is known to be harmless: the system's words for an OSError, a database's SQLSTATE.
    """
    found: list[dict[str, Any]] = []
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting and len(found) < MOST:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        found.append({"type": _name(type(one)), **_harmless(one), "stack": _stack(one.__traceback__)})
        if isinstance(one, BaseExceptionGroup):
            waiting.extend(one.exceptions)
        waiting.append(one.__cause__ if one.__suppress_context__ else one.__cause__ or one.__context__)
    return found


def _name(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _harmless(error: BaseException) -> dict[str, str]:
    if isinstance(error, TOLD):
        return {"text": str(error)}
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return {"text": os.strerror(error.errno)}
    state = getattr(error, "sqlstate", None)
    return {"sqlstate": state} if isinstance(state, str) else {}


def _stack(trace: TracebackType | None) -> list[str]:
    frames: list[str] = []
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{_short(code.co_filename)}:{trace.tb_lineno}:{code.co_qualname}")
        trace = trace.tb_next
    return frames[-DEEPEST:]


def _short(path: str) -> str:
    """Leave out where the code is installed: it differs by machine and tells nothing."""
    _, found, package = path.rpartition("/site-packages/")
    return package if found else path.removeprefix(ROOT)
