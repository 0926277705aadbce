"""The tree of refusals: complete in its drawing, closed, and silent about what it was given."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from actors.domain import errors
from actors.domain.errors import InvalidCode, InvalidEmail, Refusal, WaitRefusal, WeakPassword, WrongCode
from actors.kit.mailbox import AnswerLost, MachineError, NotAccepted

ABSTRACT = {WaitRefusal}
SECRET = "correct horse battery staple"


def tree(top: type[Refusal] = Refusal) -> Iterator[type[Refusal]]:
    """Yield every refusal that can be raised."""
    for branch in top.__subclasses__():
        if branch.__module__ == errors.__name__:
            if branch not in ABSTRACT:
                yield branch
            yield from tree(branch)


def example(kind: type[Refusal]) -> Refusal:
    """Return one of the kind."""
    if issubclass(kind, WaitRefusal):
        return kind(7)
    arguments: dict[type[Refusal], tuple[object, ...]] = {
        InvalidEmail: (SECRET,),
        WeakPassword: ((SECRET,),),
        InvalidCode: (6,),
        WrongCode: (3,),
    }
    return kind(*arguments.get(kind, ()))


def test_the_drawing_shows_every_refusal_and_no_other() -> None:
    """Whoever adds a refusal draws it."""
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert sorted(drawn) == sorted(kind.__name__ for kind in tree())


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.__name__)
def test_a_refusal_has_no_text_of_its_own(kind: type[Refusal]) -> None:
    """Printed into a log it tells its name and nothing it was given, and when to come back where time heals it."""
    refusal = example(kind)
    assert (str(refusal), refusal.args, SECRET in repr(refusal)) == ("", (), False)
    assert refusal.retry_after == (7 if issubclass(kind, WaitRefusal) else None)


@pytest.mark.parametrize("kind", [NotAccepted, AnswerLost])
def test_a_machine_error_is_no_refusal(kind: type[MachineError]) -> None:
    """The machinery failed, not the request: it says when to come back."""
    assert not issubclass(kind, Refusal)
    assert kind().retry_after == 1
    assert kind(2.5).retry_after == 2.5
