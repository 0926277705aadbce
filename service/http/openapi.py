"""The lines of the route table, and the description in OpenAPI 3.1 that is made from them.

Its schemas come from the models, its examples from the table of problems.

Made here and not by a library: docs/adr/0010-libraries.md has the figures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from pydantic.json_schema import models_json_schema

from actors.domain.errors import RateLimited, WaitRefusal
from actors.kit.mailbox import AnswerLost, MachineError, NotAccepted
from actors.ports import StoreUnavailable
from service.http.problems import (
    MEDIA,
    TABLE,
    BodyTimeout,
    BodyTooLarge,
    HeadersTooLarge,
    InvalidFields,
    MalformedRequest,
    OpsTokenMissing,
    OpsTokenRequired,
    UnsupportedMedia,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from pydantic import BaseModel
    from quart import Response


class Route(NamedTuple):
    """A method and a path, and the handler that answers."""

    method: str
    path: str
    handler: Callable[..., Awaitable[Response]]

    @property
    def template(self) -> str:
        """The path as metrics and the description name it: `/activation/{token}`."""
        return self.path.replace("<", "{").replace(">", "}")


HandlerT = TypeVar("HandlerT", bound="Callable[..., object]")

Access = Literal["public", "basic", "ops"]
ATTRIBUTE = "__operation__"


@dataclass(frozen=True, slots=True)
class Operation:
    """One call as the description shows it; `success` has the body of each status, or its media type.

    `parameters` are those of headers and query, as OpenAPI writes them. `problems` are the call's own; those of any
    call, and of any call for operators, are added for it.
    """

    summary: str
    success: Mapping[int, type[BaseModel] | str]
    body: type[BaseModel] | None = None
    access: Access = "public"
    problems: tuple[type[Exception], ...] = ()
    parameters: tuple[Mapping[str, object], ...] = ()
    limited: bool = False


def describes(success: Mapping[int, type[BaseModel] | str], **details: Any) -> Callable[[HandlerT], HandlerT]:  # noqa: ANN401 - fields of Operation
    """Attach an operation to a handler and leave the handler as it is; its docstring is the summary."""

    def attach(handler: HandlerT) -> HandlerT:
        summary = (handler.__doc__ or "").partition("\n")[0]
        setattr(handler, ATTRIBUTE, Operation(summary, success, **details))
        return handler

    return attach


def operation_of(handler: Callable[..., object]) -> Operation | None:
    """Return what the handler says about itself; None for one that is not part of the description."""
    return getattr(handler, ATTRIBUTE, None)


ANY_CALL = (HeadersTooLarge, Exception, NotAccepted, StoreUnavailable, AnswerLost)
WITH_BODY = (MalformedRequest, BodyTimeout, BodyTooLarge, UnsupportedMedia, InvalidFields)
SECURITY: Mapping[Access, list[dict[str, list[str]]]] = {
    "public": [],
    "basic": [{"account": []}],
    "ops": [{"operator": []}],
}
SCHEMES = {
    "account": {"type": "http", "scheme": "basic", "description": "The e-mail address and password, in UTF-8."},
    "operator": {"type": "http", "scheme": "bearer", "description": "The value of VESTIBULE_OPS_TOKEN."},
}
TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
HEADERS = {
    "X-Request-ID": {"schema": TEXT, "description": "The caller's if it is plain, else ours."},
    "Retry-After": {"schema": NUMBER, "description": "Seconds; waiting that long is enough."},
    "Location": {"schema": TEXT, "description": "The status address."},
    "RateLimit-Policy": {"schema": TEXT, "description": "The limits that apply."},
    "RateLimit": {"schema": TEXT, "description": "What remains of them."},
    "X-RateLimit-Limit": {"schema": NUMBER, "description": "The closest limit."},
    "X-RateLimit-Remaining": {"schema": NUMBER, "description": "What remains of it."},
    "X-RateLimit-Reset": {"schema": NUMBER, "description": "Unix time at which more is free."},
    "WWW-Authenticate": {"schema": TEXT, "description": "How to authenticate."},
}
CREATED = 201
PROBLEM = {
    "type": "object",
    "description": "RFC 9457, with a stable code in `error`; some codes have further members.",
    "required": ["type", "title", "status", "detail", "error"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": TEXT,
        "status": NUMBER,
        "detail": {"type": "string", "description": "A sentence for a person."},
        "error": {"type": "string", "enum": sorted({problem.code for problem in TABLE.values()})},
        "retry_after": {"type": "integer", "description": "As the header Retry-After."},
        "errors": {"type": "array", "items": {"type": "object", "properties": {"field": TEXT, "message": TEXT}}},
        "reasons": {"type": "array", "items": TEXT},
        "attempts_left": NUMBER,
        "superseded": {"type": "boolean"},
        "resend_url": TEXT,
        "failing": {"type": "array", "items": TEXT},
    },
}


def document(routes: Iterable[Route], version: str, root: str) -> dict[str, Any]:
    """Return the description of every route that describes itself; `root` is the path that they lie under."""
    paths: dict[str, dict[str, object]] = {}
    models: dict[tuple[type[BaseModel], Any], None] = {}  # bodies as they are read, answers as they are written
    for route in routes:
        operation = operation_of(route.handler)
        if operation is None:
            continue
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, operation)
        if operation.body is not None:
            models[operation.body, "validation"] = None
        models |= {(body, "serialization"): None for body in operation.success.values() if not isinstance(body, str)}
    _, schemas = models_json_schema(list(models), ref_template="#/components/schemas/{model}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Vestibule",
            "version": version,
            "description": "Create an account, receive a code by e-mail, activate the account with it.",
        },
        "servers": [{"url": root or "/"}],
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Problem": PROBLEM},
            "securitySchemes": SCHEMES,
            "headers": HEADERS,
        },
    }


def _operation(route: Route, operation: Operation) -> dict[str, object]:
    names = re.findall(r"<(\w+)>", route.path)
    in_path = [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in names]
    described: dict[str, object] = {
        "operationId": route.handler.__name__,
        "summary": operation.summary,
        "parameters": [*in_path, *operation.parameters],
        "security": SECURITY[operation.access],
        "responses": {**_successes(operation), **_problems(operation)},
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _content(operation.body)}
    return described


def _successes(operation: Operation) -> dict[str, object]:
    """Describe the good answers, and the ones whose body is of the same kind."""
    answers: dict[str, object] = {}
    for status, body in operation.success.items():
        limits = [name for name in HEADERS if "RateLimit" in name and operation.limited]
        answers[str(status)] = {
            "description": body if isinstance(body, str) else (body.__doc__ or "").strip(),
            "headers": _headers("X-Request-ID", *limits, *(["Location"] if status == CREATED else [])),
            "content": _content(body),
        }
    return answers


def _problems(operation: Operation) -> dict[str, object]:
    """Describe the problems by status, with an example of each."""
    kinds = [*operation.problems, *(WITH_BODY if operation.body else ()), *ANY_CALL]
    kinds += [RateLimited] if operation.limited else []
    kinds += [OpsTokenMissing, OpsTokenRequired, RateLimited] if operation.access == "ops" else []
    by_status: dict[int, list[type[Exception]]] = {}
    for kind in sorted(dict.fromkeys(kinds), key=lambda kind: TABLE[kind].status):
        by_status.setdefault(TABLE[kind].status, []).append(kind)
    return {str(status): _problem(same) for status, same in by_status.items() if status not in operation.success}


def _problem(kinds: Sequence[type[Exception]]) -> dict[str, object]:
    problems = [TABLE[kind] for kind in kinds]
    wait = ["Retry-After"] if any(issubclass(kind, WaitRefusal | MachineError) for kind in kinds) else []
    own = {name for problem in problems for name in problem.headers if name in HEADERS}
    examples = {problem.code: {"summary": problem.detail, "value": problem.body} for problem in problems}
    return {
        "description": " · ".join(examples),
        "headers": _headers("X-Request-ID", *wait, *own),
        "content": {MEDIA: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}},
    }


def _content(body: type[BaseModel] | str) -> dict[str, object]:
    if isinstance(body, str):
        return {body: {}}
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}


def _headers(*names: str) -> dict[str, object]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
