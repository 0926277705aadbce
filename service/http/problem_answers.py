"""Turns an error into its answer: application/problem+json (RFC 9457), with the headers that belong to it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from werkzeug import exceptions as werkzeug

from actors.domain.errors import InvalidEmail
from service.http import errors
from service.http.problems import problem_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.http.problems import Problem

MEDIA = "application/problem+json"


@dataclass(frozen=True, slots=True)
class ProblemAnswer:
    """A problem as it goes out."""

    status: int
    body: str = field(repr=False)
    headers: Mapping[str, str]


def answer_to(error: Exception) -> ProblemAnswer:
    """Return the answer that tells a client about an error; what is not in the table is a 500 without a word of it."""
    error = _ours(error)
    problem = problem_of(error)
    members = problem.members(error)
    body = problem_body(problem, _detail(error) or problem.detail, members)
    return ProblemAnswer(problem.status, json.dumps(body), {**problem.headers, **_headers(error, members)})


def problem_body(problem: Problem, detail: str, members: Mapping[str, object]) -> dict[str, object]:
    """Return the members in the order of RFC 9457, then our code, then the problem's own."""
    return {
        "type": f"/problems/{problem.slug}",
        "title": problem.title,
        "status": problem.status,
        "detail": detail,
        "error": problem.code,
        **members,
    }


def _detail(error: Exception) -> str | None:
    """Return the sentence of the few errors that have one of their own, written by us and without any input."""
    match error:
        case errors.MalformedRequest(reason=text) | errors.UnsupportedMedia(reason=text) | InvalidEmail(message=text):
            return str(text)
        case _:
            return None


def _headers(error: Exception, members: Mapping[str, object]) -> dict[str, str]:
    headers: dict[str, str] = {}
    if "retry_after" in members:
        headers["Retry-After"] = str(members["retry_after"])
    if isinstance(error, errors.MethodRefused):
        headers["Allow"] = ", ".join(error.allowed)
    return headers


def _ours(error: Exception) -> Exception:
    """Translate what the framework raises before a handler runs."""
    match error:
        case werkzeug.NotFound():
            return errors.UnknownPath()
        case werkzeug.MethodNotAllowed():
            return errors.MethodRefused(tuple(error.valid_methods or ()))
        case werkzeug.RequestEntityTooLarge():
            return errors.BodyTooLarge()
        case werkzeug.BadRequest():
            return errors.MalformedRequest("The request could not be read.")
        case _:
            return error
