"""Logs: one safe line an event, in the format asked for, and nobody ever waits for their reader."""

from __future__ import annotations

import ast
import json
import logging
import os
import select
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import pytest
from loguru import logger

from actors.domain.mail import MailState
from actors.kit.supervisor import TooManyCrashes
from service.logging import CAPACITY, PIPE_BUF, LogWriter, as_text, configure, describe
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
METHODS = {"trace", "debug", "info", "success", "warning", "error", "critical", "exception"}


class Pipe:
    """Both ends of a pipe, in place of stdout."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def lines(self) -> list[str]:
        """Close the writing end and return what came through."""
        os.close(self.writer)
        with os.fdopen(self.reader, encoding="utf-8") as stream:
            return stream.read().splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Open a pipe; loguru and logging are left as they were found."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield Pipe()
    logger.remove()
    logger.configure(extra={}, patcher=lambda _: None)
    logging.root.handlers[:], logging.root.level = handlers, level


def written(pipe: Pipe, *, log_format: str = "json", log_level: str = "INFO") -> LogWriter:
    """Configure the logs to go into the pipe."""
    settings = Settings.model_validate({"log_format": log_format, "log_level": log_level})
    return configure(settings, "api-1", descriptor=pipe.writer)


def objects(pipe: Pipe, writer: LogWriter) -> list[dict[str, Any]]:
    """Flush and return the lines as JSON objects."""
    writer.stop()
    return [json.loads(line) for line in pipe.lines()]


def test_a_line_is_one_json_object_with_the_named_fields_first(pipe: Pipe) -> None:
    """Time, level, message, worker, request id, route, status and ms lead in this order; further extras follow."""
    writer = written(pipe)
    logger.info("request", extra_one=UUID(int=1), ms=1.23456, status=201, route="GET /x", request_id="r-1")
    (line,) = objects(pipe, writer)
    assert list(line)[:8] == ["time", "level", "message", "worker", "request_id", "route", "status", "ms"]
    assert line["time"].endswith("Z")
    assert line["time"][10] == "T"
    assert {"ms": 1.235, "status": 201, "worker": "api-1", "extra_one": str(UUID(int=1))}.items() <= line.items()


def test_exceptions_lose_their_text_and_values_but_keep_type_and_stack(pipe: Pipe) -> None:
    """Neither the text of an exception nor a local value reaches the log; its type, cause and places do."""
    writer = written(pipe)
    password = "hunter2-" + "x" * 8
    try:
        try:
            {"other": 1}[password]
        except KeyError as error:
            raise ValueError(password) from error
    except ValueError:
        logger.exception("crashed")
    writer.stop()
    (text,) = pipe.lines()
    assert "hunter2" not in text
    shown = json.loads(text)["exception"]
    assert [one["type"] for one in shown] == ["ValueError", "KeyError"]
    assert shown[0]["stack"][0].startswith("tests/unit/test_logging.py:")
    assert shown[0]["stack"][0].endswith(":test_exceptions_lose_their_text_and_values_but_keep_type_and_stack")


def test_exceptions_of_a_group_are_shown_and_the_systems_words_are_kept(pipe: Pipe) -> None:
    """A group lists its members, and an OSError keeps the system's words without the file's name."""
    writer = written(pipe)
    group = ExceptionGroup("of secret", [FileNotFoundError(2, "No such file", "/secret"), RuntimeError("secret")])
    logger.opt(exception=group).error("crashed")
    writer.stop()
    (text,) = pipe.lines()
    assert "secret" not in text
    shown = json.loads(text)["exception"]
    assert [one["type"] for one in shown] == ["ExceptionGroup", "FileNotFoundError", "RuntimeError"]
    assert shown[1]["text"] == "No such file or directory"


def test_a_value_with_braces_or_markup_is_data_not_a_template(pipe: Pipe) -> None:
    """Extras are written as they are, whatever they look like, and an unknown object shows only its type."""
    writer = written(pipe)
    logger.info("request", agent="{x:>300000000} <red>{0.__class__}", thing=object(), text="ü\n")
    (line,) = objects(pipe, writer)
    assert line["agent"] == "{x:>300000000} <red>{0.__class__}"
    assert line["thing"] == "object"
    assert line["text"] == "ü\n"


def test_the_level_setting_silences_what_is_below_it(pipe: Pipe) -> None:
    """LOG_LEVEL=WARNING lets warnings through and nothing less."""
    writer = written(pipe, log_level="WARNING")
    logger.info("quiet")
    logger.warning("loud")
    assert [line["message"] for line in objects(pipe, writer)] == ["loud"]


def test_standard_logging_comes_through_at_warning_without_values(pipe: Pipe) -> None:
    """A library's warning shows its template, place and exception type; its values and its infos do not come."""
    writer = written(pipe)
    library = logging.getLogger("some.library")
    library.info("chatty")
    library.warning("cannot reach %s", "secret.example")
    library.error("already interpolated: secret")
    lines = objects(pipe, writer)
    assert [(line["logger"], line["text"]) for line in lines] == [
        ("some.library", "cannot reach %s"),
        ("some.library", ""),
    ]
    assert [line["level"] for line in lines] == ["WARNING", "ERROR"]


def test_text_for_people_escapes_control_characters_and_has_no_colour_in_a_pipe(pipe: Pipe) -> None:
    """A value cannot forge a line, and a pipe gets no escape sequences."""
    writer = written(pipe, log_format="text")
    logger.warning("request", path="a\nFORGED \x1b[31m", route="GET /x")
    writer.stop()
    (line,) = pipe.lines()
    assert "\x1b" not in line
    assert 'path="a\\nFORGED' in line
    assert 'api-1 request  route="GET /x"' in line


def test_text_for_people_shows_a_stack_below_its_line(pipe: Pipe) -> None:
    """The type, what is harmless of the text, and the places, innermost last."""
    writer = written(pipe, log_format="text")
    try:
        Path("/no/such/file").read_text(encoding="utf-8")
    except OSError:
        logger.exception("crashed")
    writer.stop()
    lines = pipe.lines()
    assert lines[0].endswith("api-1 crashed")
    assert lines[1] == '    FileNotFoundError text="No such file or directory"'
    assert lines[2].startswith("      at tests/unit/test_logging.py:")


def test_a_terminal_gets_colours() -> None:
    """A warning on a terminal is coloured and the colour ends on its line."""
    line = as_text({"time": "2026-01-02T03:04:05.678Z", "level": "WARNING", "message": "m"}, colour=True)
    assert line == "\x1b[33m03:04:05.678 WARNING  m\x1b[0m\n"


def test_values_of_every_sort_become_json(pipe: Pipe) -> None:
    """Enumerations, lists, infinity, long texts and nothing at all are written as JSON can hold them."""
    writer = written(pipe)
    logger.info("values", enum=MailState.QUEUED, many=list(range(50)), never=float("inf"), long="x" * 999, none=None)
    (line,) = objects(pipe, writer)
    assert (line["enum"], line["never"], line["none"]) == ("queued", "inf", None)
    assert line["many"] == list(range(20))
    assert len(line["long"]) == 501


def test_an_exception_whose_text_is_our_own_keeps_it() -> None:
    """TooManyCrashes says which actor; a database's error shows its SQLSTATE."""
    (crashes,) = describe(TooManyCrashes("UserRegistry"))
    assert "UserRegistry" in crashes["text"]
    (error,) = describe(psycopg.errors.UniqueViolation("Key (email)=(a@b.example) already exists"))
    assert error == {"type": "psycopg.errors.UniqueViolation", "sqlstate": "23505", "stack": []}


def test_a_non_blocking_stdout_loses_nothing(pipe: Pipe) -> None:
    """When someone made the shared descriptor non-blocking, the writer waits for the reader."""
    os.set_blocking(pipe.writer, False)
    writer = written(pipe)
    for _ in range(2000):
        logger.info("line", filler="x" * 90)
    received = b""
    while received.count(b"\n") < 2000:
        received += os.read(pipe.reader, 65536)
    writer.stop()
    assert writer.dropped == 0
    os.close(pipe.writer)
    os.close(pipe.reader)


def test_lines_of_a_writer_that_was_stopped_are_dropped_and_counted(pipe: Pipe) -> None:
    """Stopping twice is harmless, and what comes later is counted."""
    writer = written(pipe)
    writer.stop()
    writer.stop()
    writer.write("late\n")
    assert writer.dropped == 1
    assert pipe.lines() == []


def test_a_stalled_reader_stalls_nobody_and_the_loss_is_shown(pipe: Pipe) -> None:
    """With nobody reading, logging returns, drops past the capacity are counted, and a later line says how many."""
    writer = written(pipe)
    filler = "x" * 90
    for _ in range(CAPACITY + 3000):
        logger.info("line", filler=filler)
    lost = writer.dropped
    assert lost > 1000
    received = b""
    while b"log lines dropped" not in received:
        readable, _, _ = select.select([pipe.reader], [], [], 10)
        assert readable
        received += os.read(pipe.reader, 65536)
    shown = next(json.loads(line) for line in received.splitlines() if b"log lines dropped" in line)
    assert shown["lines"] == lost
    os.close(pipe.reader)


def test_a_reader_that_is_gone_neither_raises_nor_hangs(pipe: Pipe) -> None:
    """Lines for a closed pipe are counted as dropped."""
    writer = written(pipe)
    os.close(pipe.reader)
    logger.info("into the void")
    writer.stop()
    assert writer.dropped >= 1
    os.close(pipe.writer)


def test_no_line_is_longer_than_what_a_pipe_takes_in_one_piece(pipe: Pipe) -> None:
    """A line of many extras is cut to PIPE_BUF bytes and still ends in a newline."""
    writer = written(pipe)
    logger.info("wide", **{f"key{number}": "ü" * 400 for number in range(20)})
    writer.stop()
    data = os.read(pipe.reader, 65536)
    assert PIPE_BUF - 2 <= len(data) <= PIPE_BUF
    assert data.endswith(b"\n")
    os.close(pipe.writer)
    os.close(pipe.reader)


def test_a_forked_child_logs_by_itself_and_loses_nothing_of_its_parent(pipe: Pipe) -> None:
    """After a fork the child's own configuration writes, and what the parent had queued is written once."""
    writer = written(pipe)
    logger.info("parent before")
    child = os.fork()
    if child == 0:
        mine = written(pipe)
        logger.info("child")
        mine.stop()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    logger.info("parent after")
    assert sorted(line["message"] for line in objects(pipe, writer)) == ["child", "parent after", "parent before"]


def test_without_a_thread_a_full_pipe_drops_instead_of_blocking(pipe: Pipe) -> None:
    """The writer of a process that forks starts no thread and never waits for its reader."""
    writer = LogWriter(pipe.writer, lambda lines: f"lost {lines}\n", threaded=False)
    for _ in range(1000):
        writer.write("x" * 1000 + "\n")
    assert 900 < writer.dropped < 1000
    os.close(pipe.writer)
    os.close(pipe.reader)


@pytest.mark.parametrize("path", sorted([*ROOT.glob("service/**/*.py"), *ROOT.glob("actors/**/*.py")]), ids=str)
def test_every_log_call_has_a_constant_template(path: Path) -> None:
    """No module hands loguru a message that is put together: a user's text in a template is an attack."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(value=receiver, attr=method), args=[first, *_]) if method in METHODS:
                root = receiver
                while isinstance(root, ast.Call | ast.Attribute):
                    root = root.func if isinstance(root, ast.Call) else root.value
                if isinstance(root, ast.Name) and root.id == "logger":
                    assert isinstance(first, ast.Constant), f"{path.name}:{node.lineno}"
