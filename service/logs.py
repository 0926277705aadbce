"""Logs: one JSON object a line on stdout, or lines for people, from loguru and from the standard logging alike.

Call loguru with a constant template and keyword extras: `logger.info("request", route=…, status=…)`. A value that came
from outside never stands in the template. Exceptions are told as type and stack, without their text, which may
hold what a user typed.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
from datetime import UTC, date, datetime
from enum import Enum
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from math import isfinite
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from uuid import UUID

from loguru import logger

from service.log_exceptions import describe
from service.log_writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loguru import Message, Record

    from service.settings import Settings

LEADING = ("worker", "request_id", "route", "status", "ms")  # what one looks for first, in this order
TEXT_LIMIT = 500  # characters of one extra: no value makes a line that a collector cuts
ITEM_LIMIT = 20  # of a list
SAFE_TO_SHOW = (UUID, PurePath, IPv4Address, IPv6Address, date)  # others by type: a repr may hold anything
COLOURS = {"DEBUG": "\x1b[2m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[1;31m"}
RESET = "\x1b[0m"
ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode
TOLD_IN_FULL = ("psycopg.pool",)  # libraries whose messages hold no value of a user


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
    logger.add(_Sink(writer, render), level=settings.log_level, format="", backtrace=False, diagnose=False)
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


class _Sink:
    """Where loguru hands its records."""

    def __init__(self, writer: LogWriter, render: Callable[[Mapping[str, Any]], str]) -> None:
        self._writer = writer
        self._render = render

    def write(self, message: Message) -> None:
        self._writer.write(self._render(_fields(message.record)))

    def stop(self) -> None:
        self._writer.stop()


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
        known = record.name.startswith(TOLD_IN_FULL)
        text = record.getMessage() if known else str(record.msg) if record.args else ""
        level = record.levelname if record.levelname in logging.getLevelNamesMapping() else "WARNING"
        where = f"{record.filename}:{record.lineno}:{record.funcName}"
        caught = record.exc_info[1] if record.exc_info else None
        logger.opt(exception=caught).log(level, "library", logger=record.name, where=where, text=text)
