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
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from math import isfinite
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from uuid import UUID

from loguru import logger

from actors.kit.supervisor import TooManyCrashes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from loguru import Message, Record

    from service.settings import Settings

MOST = 8  # exceptions of one chain or group: more tell nothing new
DEEPEST = 40  # frames of one exception, the innermost: a recursion must not fill the log
OWN_TEXTS = (TooManyCrashes,)  # exceptions whose text is our own
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
    if isinstance(error, OWN_TEXTS):
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


CAPACITY = 10_000  # lines, about 2 MB: ten seconds of a busy worker
PIPE_BUF = 4096  # the system writes so many bytes to a pipe in one piece: lines of several workers never mix
GATHER_SECONDS = 0.05  # of lines for one write: to wake the thread for each costs more than all the rest of the line
STOP_SECONDS = 2.0  # a reader that is stalled when the process ends is waited for no longer


class LogWriter:
    """A bounded queue of lines and the thread that writes them, of one process.

    `write` never blocks, and its line leaves GATHER_SECONDS later. Without room it is dropped and counted, and the
    count is written in a line of its own as soon as there is room again. Without a thread (`threaded=False`, for a
    process that forks) a line is written at once if the descriptor can take it and dropped if not. After a fork the
    child makes a writer of its own; there the parent's does nothing.
    """

    def __init__(self, descriptor: int, dropped_line: Callable[[int], str], *, threaded: bool = True) -> None:
        self._descriptor = descriptor
        self._dropped_line = dropped_line
        self._pid = os.getpid()
        self._lines: deque[bytes] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._stopping = self._idle = False
        self._unreported = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True) if threaded else None
        if self._thread is not None:
            self._thread.start()

    def write(self, line: str) -> None:
        """Queue one line that ends in a newline."""
        if os.getpid() != self._pid:
            return
        data = _bounded(line)
        if self._thread is None:
            self._write_now(data)
            return
        with self._changed:
            if self._stopping or len(self._lines) >= CAPACITY:
                self._drop(1)
                return
            self._lines.append(data)
            if self._idle:
                self._idle = False
                self._changed.notify()

    def stop(self) -> None:
        """Write what is queued, for a moment at most; later lines are dropped. May be called twice."""
        if os.getpid() != self._pid or self._thread is None:
            return
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(STOP_SECONDS)

    def _drop(self, lines: int) -> None:
        self.dropped += lines
        self._unreported += lines

    def _write_now(self, data: bytes) -> None:
        _, writable, _ = select.select((), (self._descriptor,), (), 0)
        if not writable or not self._put(data):
            self._drop(1)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._lines:
                    self._rest()
                if not self._lines and not self._unreported:
                    return
                unreported, self._unreported = self._unreported, 0
                batch, lines = self._batch(unreported)
            if not self._put(batch):
                with self._changed:
                    self._drop(lines)
                    self._unreported += unreported
                    if self._stopping:
                        return

    def _rest(self) -> None:
        """Wait for a line, then a little for others, or for the end; holds the lock but while it waits."""
        self._idle = True
        self._changed.wait_for(lambda: self._lines or self._stopping)
        self._idle = False
        self._changed.wait_for(lambda: self._stopping, GATHER_SECONDS)

    def _batch(self, unreported: int) -> tuple[bytes, int]:
        """Take whole lines of at most PIPE_BUF bytes together, led by the news of lines that were lost."""
        parts = [_bounded(self._dropped_line(unreported))] if unreported else []
        size, lines = sum(map(len, parts)), 0
        while self._lines and (not parts or size + len(self._lines[0]) <= PIPE_BUF):
            part = self._lines.popleft()
            parts.append(part)
            size += len(part)
            lines += 1
        return b"".join(parts), lines

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


LEADING = ("worker", "request_id", "route", "status", "ms")  # what one looks for first, in this order
TEXT_LIMIT = 500  # characters of one extra: no value makes a line that a collector cuts
ITEM_LIMIT = 20  # of a list
SAFE_TO_SHOW = (UUID, PurePath, IPv4Address, IPv6Address, date)  # others by type: a repr may hold anything
COLOURS = {"DEBUG": "\x1b[2m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[1;31m"}
RESET = "\x1b[0m"
ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode


def configure(settings: Settings, worker: str, *, threaded: bool = True, descriptor: int | None = None) -> LogWriter:
    """Send this process' logs to stdout, named `worker`; call it once in each process, after the fork.

    Nothing that logs ever waits for the reader of stdout. A process that forks others passes `threaded=False`; one
    that leaves by `os._exit` calls `stop()` of what is returned first, others are flushed at exit.
    """
    target = sys.stdout.fileno() if descriptor is None else descriptor
    people = settings.log_format == "text"
    render = partial(as_text, colour=os.isatty(target)) if people else as_json
    writer = LogWriter(target, lambda lines: render(_loss(worker, lines)), threaded=threaded)
    logger.remove()
    logger.configure(extra={"worker": worker}, patcher=_strip_exception)

    def write(message: Message) -> None:
        writer.write(render(_fields(message.record)))

    logger.add(write, level=settings.log_level, format="", backtrace=False, diagnose=False)
    logging.basicConfig(handlers=[_FromStandardLogging()], level=logging.WARNING, force=True)
    atexit.register(writer.stop)
    return writer


def as_json(fields: Mapping[str, Any]) -> str:
    """Return the fields as one line of JSON."""
    return ENCODE(fields) + "\n"


def as_text(fields: Mapping[str, Any], *, colour: bool = False) -> str:
    """Return the fields as one line for a person, with the stack of an exception below."""
    rest = {key: value for key, value in fields.items() if key not in {"time", "level", "message", "worker"}}
    stack = rest.pop("exception", None)
    extras = "".join(f"  {key}={_quoted(value)}" for key, value in rest.items())
    level, clock = str(fields["level"]), str(fields["time"])[11:23]
    head = f"{clock} {level:<8}{fields.get('worker', '')} "
    before, after = (COLOURS.get(level, ""), RESET) if colour else ("", "")
    return f"{before}{head}{_quoted(fields['message'], spaces=True)}{after}{extras}\n{_indented(stack)}"


def _indented(exceptions: list[dict[str, Any]] | None) -> str:
    lines: list[str] = []
    for one in exceptions or ():
        detail = "".join(f" {key}={_quoted(value)}" for key, value in one.items() if key not in {"type", "stack"})
        lines.append(f"    {one['type']}{detail}\n")
        lines.extend(f"      at {frame}\n" for frame in one["stack"])
    return "".join(lines)


def _quoted(value: object, *, spaces: bool = False) -> str:
    """Keep a value on its line: control characters, which could forge lines or colours, are escaped."""
    text = str(value)
    plain = text.isprintable() and (spaces or not (" " in text or '"' in text or not text))
    return text if plain else json.dumps(text)


def _fields(record: Record) -> dict[str, Any]:
    extra = record["extra"]
    fields = _head(record["time"].astimezone(UTC), record["level"].name, record["message"])
    for key in LEADING:
        if key in extra:
            fields[key] = _shown(extra[key])
    for key, value in extra.items():
        if key not in fields:
            fields[key] = value if key == "exception" else _shown(value)
    return fields


def _head(when: datetime, level: str, message: str) -> dict[str, Any]:
    clock = when.replace(tzinfo=None).isoformat(timespec="milliseconds")
    return {"time": f"{clock}Z", "level": level, "message": message}


def _loss(worker: str, lines: int) -> dict[str, Any]:
    return {**_head(datetime.now(UTC), "WARNING", "log lines dropped"), "worker": worker, "lines": lines}


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
