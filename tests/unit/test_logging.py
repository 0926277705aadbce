"""Logs: one safe line an event, in the format asked for, and nobody ever waits for their reader."""

from __future__ import annotations

import ast
import json
import logging
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from loguru import logger

from actors.domain.mail import MailState
from actors.kit.supervisor import TooManyCrashes
from service.logging import CAPACITY, PIPE_BUF, LogWriter, configure, describe
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
METHODS = {"trace", "debug", "info", "success", "warning", "error", "critical", "exception"}


class Pipe:
    """Both ends of a pipe, in place of stdout, and the writer that the logs have over it."""

    def __init__(self) -> None:
        reader, descriptor = os.pipe()
        self.reader, self.end = os.fdopen(reader, "rb", 0), os.fdopen(descriptor, "wb", 0)
        self.writer: LogWriter

    def configure(self, **settings: str) -> LogWriter:
        """Have the logs go into the pipe."""
        chosen = Settings.model_validate({"log_format": "json", **settings})
        self.writer = configure(chosen, "api-1", descriptor=self.end.fileno())
        return self.writer

    def text(self) -> str:
        """Flush, close the writing end and return what came through."""
        self.writer.stop()
        self.end.close()
        return self.reader.read().decode()

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines as JSON objects."""
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Open a pipe, into which the logs go as JSON; loguru and logging are left as they were found."""
    handlers, level = logging.root.handlers[:], logging.root.level
    pipe = Pipe()
    pipe.configure()
    yield pipe
    logger.remove()
    logger.configure(extra={}, patcher=lambda _: None)
    logging.root.handlers[:], logging.root.level = handlers, level
    pipe.reader.close()  # first: a writer that still has lines would wait for it
    pipe.writer.stop()
    pipe.end.close()


def test_a_line_is_one_json_object_with_the_named_fields_first(pipe: Pipe) -> None:
    """Time, level, message and worker lead; extras follow as they were given."""
    logger.info("request", ms=1.23456, status=201, extra_one=UUID(int=1))
    (line,) = pipe.lines()
    assert list(line) == ["time", "level", "message", "worker", "ms", "status", "extra_one"]
    assert (line["time"][10], line["time"][-1]) == ("T", "Z")
    assert {"ms": 1.235, "status": 201, "worker": "api-1", "extra_one": str(UUID(int=1))}.items() <= line.items()


def test_values_of_every_sort_become_json_and_are_no_template(pipe: Pipe) -> None:
    """Enumerations, lists, infinity, long texts and nothing at all; an unknown object shows only its type."""
    values: dict[str, Any] = {"agent": "{x:>300000000} <red>{0.__class__}", "text": "ü\n", "none": None}
    logger.info("values", enum=MailState.QUEUED, many=list(range(50)), never=float("inf"), long="x" * 999, **values)
    logger.info("thing", thing=object())
    line, other = pipe.lines()
    assert values.items() <= line.items()
    assert (line["enum"], line["never"], line["many"], len(line["long"])) == ("queued", "inf", list(range(20)), 501)
    assert other["thing"] == "object"


def test_exceptions_lose_their_text_and_values_but_keep_type_and_stack(pipe: Pipe) -> None:
    """Neither the text of an exception nor a local value reaches the log; its type, cause and places do."""
    password = "hunter2-" + "x" * 8
    try:
        try:
            {"other": 1}[password]
        except KeyError as error:
            raise ValueError(password) from error
    except ValueError:
        logger.exception("crashed")
    text = pipe.text()
    shown = json.loads(text)["exception"]
    assert ("hunter2" in text, [one["type"] for one in shown]) == (False, ["ValueError", "KeyError"])
    file, _, function = shown[0]["stack"][0].split(":")
    assert (file, function) == (
        "tests/unit/test_logging.py",
        "test_exceptions_lose_their_text_and_values_but_keep_type_and_stack",
    )


def test_exceptions_of_a_group_are_shown_and_the_systems_words_are_kept() -> None:
    """A group lists its members; an OSError keeps the system's words, a database's its SQLSTATE, our own its text."""
    members = [FileNotFoundError(2, "No such file", "/secret"), RuntimeError("secret"), TooManyCrashes("UserRegistry")]
    shown = describe(ExceptionGroup("of secret", [*members, psycopg.errors.UniqueViolation("secret")]))
    assert "secret" not in str(shown)
    kinds = [one["type"].rpartition(".")[2] for one in shown]
    assert kinds == ["ExceptionGroup", "FileNotFoundError", "RuntimeError", "TooManyCrashes", "UniqueViolation"]
    assert (shown[1]["text"], shown[4]["sqlstate"]) == ("No such file or directory", "23505")
    assert "UserRegistry" in shown[3]["text"]


def test_standard_logging_comes_through_at_warning_without_values(pipe: Pipe) -> None:
    """A library's warning shows its template, place and exception type; its values and its infos do not come."""
    library = logging.getLogger("some.library")
    library.info("chatty")
    library.warning("cannot reach %s", "secret.example")
    library.error("already interpolated: secret")
    found = [(line["level"], line["logger"], line["text"]) for line in pipe.lines()]
    assert found == [("WARNING", "some.library", "cannot reach %s"), ("ERROR", "some.library", "")]


def test_the_level_setting_silences_what_is_below_it(pipe: Pipe) -> None:
    """LOG_LEVEL=WARNING lets warnings through and nothing less."""
    pipe.configure(log_level="WARNING")
    logger.info("quiet")
    logger.warning("loud")
    assert [line["message"] for line in pipe.lines()] == ["loud"]


def test_text_for_people_is_safe_and_shows_a_stack_below_its_line(pipe: Pipe) -> None:
    """A value cannot forge a line, a pipe gets no escape sequences; a stack has type, harmless text and places."""
    pipe.configure(log_format="text")
    logger.warning("request", path="a\nFORGED \x1b[31m", route="GET /x")
    try:
        Path("/no/such/file").read_text(encoding="utf-8")
    except OSError:
        logger.exception("crashed")
    text = pipe.text()
    line, crash, kind, place, *_ = text.splitlines()
    assert ("\x1b" in text, crash[-13:]) == (False, "api-1 crashed")
    assert all(part in line for part in ('api-1 request  path="a\\nFORGED', '  route="GET /x"'))
    assert kind == '    FileNotFoundError text="No such file or directory"'
    assert place.startswith("      at tests/unit/test_logging.py:")


def test_a_non_blocking_stdout_loses_nothing(pipe: Pipe) -> None:
    """When someone made the shared descriptor non-blocking, the writer waits for the reader."""
    os.set_blocking(pipe.end.fileno(), False)
    for _ in range(2000):
        logger.info("line", filler="x" * 90)
    received = b""
    while received.count(b"\n") < 2000:
        received += pipe.reader.read(65536)
    pipe.writer.stop()
    assert pipe.writer.dropped == 0


def test_lines_of_a_writer_that_was_stopped_are_dropped_and_counted(pipe: Pipe) -> None:
    """Stopping twice is harmless, and what comes later is counted."""
    pipe.writer.stop()
    pipe.writer.write("late\n")
    assert (pipe.text(), pipe.writer.dropped) == ("", 1)


def test_a_stalled_reader_stalls_nobody_and_the_loss_is_shown(pipe: Pipe) -> None:
    """With nobody reading, logging returns, drops past the capacity are counted, and a later line says how many."""
    filler = "x" * 90
    for _ in range(CAPACITY + 3000):
        logger.info("line", filler=filler)
    lost = pipe.writer.dropped
    assert lost > 1000
    received = b""
    while b"log lines dropped" not in received:
        readable, _, _ = select.select([pipe.reader], [], [], 10)
        assert readable
        received += pipe.reader.read(65536)
    assert f'"lines":{lost}'.encode() in received.replace(b" ", b"")


def test_a_reader_that_is_gone_neither_raises_nor_hangs(pipe: Pipe) -> None:
    """Lines for a closed pipe are counted as dropped."""
    pipe.reader.close()
    logger.info("into the void")
    pipe.writer.stop()
    assert pipe.writer.dropped >= 1


def test_no_line_is_longer_than_what_a_pipe_takes_in_one_piece(pipe: Pipe) -> None:
    """A line of many extras is cut to PIPE_BUF bytes and still ends in a newline."""
    logger.info("wide", **{f"key{number}": "ü" * 400 for number in range(20)})
    data = pipe.text().encode()
    assert PIPE_BUF - 2 <= len(data) <= PIPE_BUF
    assert data.endswith(b"\n")


def test_a_forked_child_logs_by_itself_and_loses_nothing_of_its_parent(pipe: Pipe) -> None:
    """After a fork the child's own configuration writes, and what the parent had queued is written once."""
    logger.info("parent before")
    child = os.fork()
    if child == 0:
        mine = pipe.configure()
        logger.info("child")
        mine.stop()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    logger.info("parent after")
    assert sorted(line["message"] for line in pipe.lines()) == ["child", "parent after", "parent before"]


def test_without_a_thread_a_full_pipe_drops_instead_of_blocking(pipe: Pipe) -> None:
    """The writer of a process that forks starts no thread and never waits for its reader."""
    writer = LogWriter(pipe.end.fileno(), lambda lines: f"lost {lines}\n", threaded=False)
    for _ in range(1000):
        writer.write("x" * 1000 + "\n")
    assert 900 < writer.dropped < 1000


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
