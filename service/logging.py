"""Logs: one JSON object a line on stdout, or lines for people, from loguru and from the standard logging alike.

Call loguru with a constant template and keyword extras: `logger.info("request", route=…, status=…)`. A value that came
from outside never stands in the template. Exceptions are shown as type and stack, without their text, which may hold
what a user typed.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import select
import sys
import threading
from collections import deque
from datetime import UTC, date, datetime
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from math import isfinite
from pathlib import Path, PurePath
from traceback import StackSummary, walk_tb
from typing import TYPE_CHECKING, Any
from uuid import UUID

from loguru import logger

from actors.kit.supervisor import TooManyCrashes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loguru import Message, Record

    from service.settings import Settings

MOST = 8  # exceptions of one chain or group: more tell nothing new
DEEPEST = 40  # frames of one exception, the innermost: a recursion must not fill the log
ROOT = str(Path(__file__).resolve().parents[1]) + "/"


def describe(error: BaseException) -> list[dict[str, Any]]:
    """Return the error and what led to it, each with its type and its stack as `file:line:function`, innermost last.

    A text is added only where it is known to be harmless: the system's words for an OSError, a database's SQLSTATE.
    """
    found: dict[int, dict[str, Any]] = {}
    waiting: list[BaseException | None] = [error]
    while waiting and len(found) < MOST:
        one = waiting.pop(0)
        if one is None or id(one) in found:
            continue
        frames = StackSummary.extract(walk_tb(one.__traceback__), limit=-DEEPEST, lookup_lines=False)
        stack = [f"{_short(frame.filename)}:{frame.lineno}:{frame.name}" for frame in frames]
        module = type(one).__module__
        name = f"{'' if module == 'builtins' else f'{module}.'}{type(one).__qualname__}"
        found[id(one)] = {"type": name, **_harmless(one), "stack": stack}
        if isinstance(one, BaseExceptionGroup):
            waiting.extend(one.exceptions)
        waiting.append(one.__cause__ if one.__suppress_context__ else one.__cause__ or one.__context__)
    return list(found.values())


def _harmless(error: BaseException) -> dict[str, str]:
    if isinstance(error, TooManyCrashes):  # of our own words
        return {"text": str(error)}
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return {"text": os.strerror(error.errno)}
    state = getattr(error, "sqlstate", None)
    return {"sqlstate": state} if isinstance(state, str) else {}


def _short(path: str) -> str:
    """Leave out where the code is installed: it differs by machine and tells nothing."""
    return path.rpartition("/site-packages/")[2].removeprefix(ROOT)


CAPACITY = 10_000  # lines, about 2 MB: ten seconds of a busy worker
PIPE_BUF = 4096  # the system writes so many bytes to a pipe in one piece: lines of several workers never mix
GATHER_SECONDS = 0.05  # of lines for one write: to wake the thread for each costs more than all the rest of the line
STOP_SECONDS = 2.0  # a reader that is stalled when the process ends is waited for no longer


class LogWriter:
    """A bounded queue of lines and the thread that writes them, of one process.

    `write` never blocks, and its line leaves GATHER_SECONDS later. Without room it is dropped and counted, and the
    count is written in a line of its own as soon as there is room again. Without a thread (`threaded=False`, for a
    process that forks) a line is written at once if the descriptor can take it and dropped if not. After a fork the
    child makes a writer of its own: the thread, and with it all that this one does, stays with the parent.
    """

    def __init__(self, descriptor: int, dropped_line: Callable[[int], str], *, threaded: bool = True) -> None:
        self._descriptor = descriptor
        self._dropped_line = dropped_line
        self._lines: deque[bytes] = deque()
        self._stopping = threading.Event()
        self._reported = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True) if threaded else None
        if self._thread is not None:
            self._thread.start()

    def write(self, line: str) -> None:
        """Queue one line that ends in a newline."""
        data = _bounded(line)
        if self._thread is None:
            _, writable, _ = select.select((), (self._descriptor,), (), 0)
            self.dropped += not (writable and self._put(data))
        elif self._stopping.is_set() or len(self._lines) >= CAPACITY:
            self.dropped += 1
        else:
            self._lines.append(data)

    def stop(self) -> None:
        """Write what is queued, for a moment at most; later lines are dropped. May be called twice."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(GATHER_SECONDS):
            self._write_queued()
        self._write_queued()

    def _write_queued(self) -> None:
        """Write whole lines, at most PIPE_BUF bytes at a time, led by the news of lines that were lost."""
        while self._lines or self._reported < self.dropped:
            dropped, lines = self.dropped, 0
            batch = _bounded(self._dropped_line(dropped - self._reported)) if self._reported < dropped else b""
            while self._lines and len(batch) + len(self._lines[0]) <= PIPE_BUF:
                batch += self._lines.popleft()
                lines += 1
            if not self._put(batch):
                self.dropped += lines
                return
            self._reported = dropped

    def _put(self, data: bytes) -> bool:
        """Write all of it; False when nobody can read it any more."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # someone made the shared descriptor non-blocking
                select.select((), (self._descriptor,), ())
            except OSError:
                return False
        return True


def _bounded(line: str) -> bytes:
    data = line.encode("utf-8", "backslashreplace")
    if len(data) <= PIPE_BUF:
        return data
    return data[: PIPE_BUF - 1].decode("utf-8", "ignore").encode() + b"\n"


TEXT_LIMIT = 500  # characters of one extra: no value makes a line that a collector cuts
ITEM_LIMIT = 20  # of a list
SAFE_TO_SHOW = (UUID, PurePath, IPv4Address, IPv6Address, date)  # others by type: a repr may hold anything
ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode


def configure(settings: Settings, worker: str, *, threaded: bool = True, descriptor: int | None = None) -> LogWriter:
    """Send this process' logs to stdout, named `worker`; call it once in each process, after the fork.

    Nothing that logs ever waits for the reader of stdout. A process that forks others passes `threaded=False`; one
    that leaves by `os._exit` calls `stop()` of what is returned first, others are flushed at exit.
    """
    render = as_text if settings.log_format == "text" else as_json

    def loss(lines: int) -> str:
        return render(_fields(datetime.now(UTC), "WARNING", "log lines dropped", {"worker": worker, "lines": lines}))

    writer = LogWriter(sys.stdout.fileno() if descriptor is None else descriptor, loss, threaded=threaded)
    logger.remove()
    logger.configure(extra={"worker": worker}, patcher=_strip_exception)

    def write(message: Message) -> None:
        record = message.record
        writer.write(render(_fields(record["time"], record["level"].name, record["message"], record["extra"])))

    logger.add(write, level=settings.log_level, format="", backtrace=False, diagnose=False)
    logging.basicConfig(handlers=[_FromStandardLogging()], level=logging.WARNING, force=True)
    atexit.register(writer.stop)
    return writer


def as_json(fields: Mapping[str, Any]) -> str:
    """Return the fields as one line of JSON."""
    return ENCODE(fields) + "\n"


def as_text(fields: Mapping[str, Any]) -> str:
    """Return the fields as one line for a person, with the stack of an exception below."""
    rest = dict(fields)
    clock, level, message, worker = (rest.pop(name, "") for name in ("time", "level", "message", "worker"))
    lines = []
    for one in rest.pop("exception", ()):
        harmless = {key: one[key] for key in one.keys() - {"type", "stack"}}
        lines += [f"    {one['type']}{_extras(harmless)}", *(f"      at {frame}" for frame in one["stack"])]
    head = f"{clock[11:23]} {level:<8}{worker} {_quoted(message, spaces=True)}{_extras(rest, gap='  ')}"
    return "\n".join([head, *lines, ""])


def _extras(values: Mapping[str, object], gap: str = " ") -> str:
    return "".join(f"{gap}{key}={_quoted(value)}" for key, value in values.items())


def _quoted(value: object, *, spaces: bool = False) -> str:
    """Keep a value on its line: control characters, which could forge lines or colours, are escaped."""
    text = str(value)
    plain = text.isprintable() and (spaces or not (" " in text or '"' in text or not text))
    return text if plain else json.dumps(text)


def _fields(when: datetime, level: str, message: str, extra: Mapping[str, object]) -> dict[str, Any]:
    clock = when.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    shown = {key: value if key == "exception" else _shown(value) for key, value in extra.items()}
    return {"time": f"{clock}Z", "level": level, "message": message} | shown


def _shown(value: object) -> object:
    """Return what JSON can hold; a text is cut, and an object that may hold anything is named by its type."""
    match value:
        case Enum():
            return _shown(value.value)
        case float():
            return round(value, 3) if isfinite(value) else str(value)
        case str():
            return value if len(value) <= TEXT_LIMIT else value[:TEXT_LIMIT] + "…"
        case list() | tuple():
            return [_shown(item) for item in value[:ITEM_LIMIT]]
        case None | bool() | int():
            return value
    return str(value) if isinstance(value, SAFE_TO_SHOW) else type(value).__name__


def _strip_exception(record: Record) -> None:
    """Put the safe description of an exception where the exception was, before any handler can print its values."""
    caught = record["exception"]
    if caught is not None and caught.value is not None:
        record["extra"]["exception"] = describe(caught.value)
    record["exception"] = None


class _FromStandardLogging(logging.Handler):
    """Brings what libraries log to loguru, without values: a message is shown only as its template."""

    def emit(self, record: logging.LogRecord) -> None:
        text = str(record.msg) if record.args else ""
        level = record.levelname if record.levelname in logging.getLevelNamesMapping() else "WARNING"
        where = f"{record.filename}:{record.lineno}:{record.funcName}"
        caught = record.exc_info[1] if record.exc_info else None
        logger.opt(exception=caught).log(level, "library", logger=record.name, where=where, text=text)
