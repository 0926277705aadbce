"""One example of every problem, for the description: what an answer looks like, made by the code that makes answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from actors.domain import errors as domain
from actors.kit.mailbox import MachineError
from service.http import errors as http
from service.http.problem_answers import answer_to

if TYPE_CHECKING:
    from collections.abc import Mapping

SAMPLES: Mapping[type[Exception], Exception] = {
    http.MalformedRequest: http.MalformedRequest("The body is not JSON."),
    http.UnsupportedMedia: http.UnsupportedMedia("Send the body as application/json."),
    http.InvalidFields: http.InvalidFields([("password", "is required")]),
    http.MethodRefused: http.MethodRefused(("GET", "HEAD", "OPTIONS")),
    http.NotReady: http.NotReady(("database",)),
    domain.InvalidEmail: domain.InvalidEmail("The domain is missing."),
    domain.WeakPassword: domain.WeakPassword(("too_short", "common")),
    domain.InvalidCode: domain.InvalidCode(6),
    domain.WrongCode: domain.WrongCode(4),
}


def example(kind: type[Exception]) -> dict[str, Any]:
    """Return the body of one answer to an error of this type."""
    body: dict[str, Any] = json.loads(answer_to(_sample(kind)).body)
    return body


def _sample(kind: type[Exception]) -> Exception:
    if kind in SAMPLES:
        return SAMPLES[kind]
    if issubclass(kind, domain.WaitRefusal | MachineError):
        return kind(30.0)
    return kind()
