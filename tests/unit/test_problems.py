from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from actors.domain.errors import Refusal
from actors.kit.mailbox import AnswerLost, MachineError, NotAccepted
from actors.ports import StoreUnavailable
from service.http.problems import TABLE, RequestRefused, answer_to, by_slug

PAGE = Path(__file__).parents[2] / "docs" / "problems.md"


def below(kind: type[Exception]) -> list[type[Exception]]:
    """Return every error that derives from `kind` and from which nothing or something derives."""
    return [found for child in kind.__subclasses__() for found in (child, *below(child))]


CATEGORIES = {"Refusal", "WaitRefusal", "MachineError", "RequestRefused"}  # never raised themselves
REFUSALS = [kind for root in (Refusal, MachineError, RequestRefused) for kind in below(root)]


@pytest.mark.parametrize(
    "kind", [kind for kind in REFUSALS if kind.__name__ not in CATEGORIES], ids=lambda k: k.__name__
)
def test_every_refusal_has_an_entry(kind: type[Exception]) -> None:
    """A refusal without an answer of its own would be a 500."""
    if kind.__module__.startswith(("actors.", "service.http.")):
        assert kind in TABLE


def test_nothing_else_has_one() -> None:
    """The table has no entry for an error that nothing can raise."""
    assert set(TABLE) == {kind for kind in REFUSALS if kind.__name__ not in CATEGORIES and kind in TABLE} | {Exception}


@pytest.mark.parametrize("kind", TABLE, ids=lambda k: k.__name__)
def test_every_problem_is_an_error_in_words(kind: type[Exception]) -> None:
    """Statuses are errors, codes CamelCase, slugs kebab-case, sentences end."""
    problem = TABLE[kind]
    assert 400 <= problem.status <= 599
    assert re.fullmatch(r"([A-Z][a-z]+)+", problem.code)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", problem.slug)
    assert problem.detail.endswith(".")
    assert problem.advice.endswith(".")
    assert problem.title


@pytest.mark.parametrize("kind", [NotAccepted, StoreUnavailable, AnswerLost])
@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (2.0, "2"), (2.01, "3")])
def test_machine_errors_say_when_to_repeat(kind: type[MachineError], seconds: float, header: str) -> None:
    """Retry-After is in whole seconds, rounded up, and at least one."""
    answer = answer_to(kind(seconds))
    assert answer.status == 503
    assert answer.headers["Retry-After"] == header
    assert json.loads(answer.body)["retry_after"] == int(header)


def test_a_subclass_is_answered_as_its_nearest_kind() -> None:
    """An adapter's own kind of StoreUnavailable is still StoreUnavailable."""

    class Sealed(StoreUnavailable):
        """Made up here."""

    assert json.loads(answer_to(Sealed()).body)["error"] == "StoreUnavailable"


def test_an_unknown_error_says_nothing_of_itself() -> None:
    """A crash is a 500 without its text."""

    class Odd(Exception):
        reason = message = "password=hunter2"

    answer = answer_to(Odd("hunter2"))
    assert answer.status == 500
    assert "hunter2" not in answer.body
    assert json.loads(answer.body)["error"] == "InternalError"


def test_the_page_of_problems_is_the_table() -> None:
    """docs/problems.md has a row for every problem, in order, and no other."""
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (.*) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [
        (str(problem.status), problem.code, problem.detail, problem.advice)
        for problems in by_slug().values()
        for problem in problems
    ]
