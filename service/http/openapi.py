"""The lines of the route table, and the description in OpenAPI 3.1 that is made from them.

Its schemas come from the models, its examples from the table of problems.

Made here and not by a library: docs/adr/0010-libraries.md has the figures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from pydantic.json_schema import models_json_schema

from actors.domain.errors import RateLimited
from actors.kit.mailbox import AnswerLost, NotAccepted
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
    example,
)
from service.http.schemas import ActivateRequest, code_pattern

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from pydantic import BaseModel
    from quart import Response

    from service.settings import Settings


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
    operation = getattr(handler, ATTRIBUTE, None)
    return operation if isinstance(operation, Operation) else None


REF = "#/components/schemas/{model}"
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
LIMIT_HEADERS = ("RateLimit-Policy", "RateLimit", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
CREATED = 201
PROBLEM = {
    "type": "object",
    "description": "RFC 9457, with a stable code in `error`.",
    "required": ["type", "title", "status", "detail", "error"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": TEXT,
        "status": NUMBER,
        "detail": {"type": "string", "description": "A sentence for a person."},
        "error": {"type": "string", "enum": sorted({problem.code for problem in TABLE.values()})},
    },
}


def document(routes: Iterable[Route], version: str, settings: Settings) -> dict[str, Any]:
    """Return the description of every route that describes itself."""
    described = [(route, operation) for route in routes if (operation := operation_of(route.handler)) is not None]
    schemas = _schemas([operation for _, operation in described])
    for name in ActivateRequest.one_of:  # how many digits is a setting, which no model knows
        schemas[ActivateRequest.__name__]["properties"][name]["anyOf"][0]["pattern"] = code_pattern(
            settings.code_digits
        )
    paths: dict[str, dict[str, object]] = {}
    for route, operation in described:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Vestibule",
            "version": version,
            "description": "Create an account, receive a code by e-mail, activate the account with it.",
        },
        "servers": [{"url": settings.root or "/"}],
        "paths": paths,
        "components": {"schemas": {**schemas, "Problem": PROBLEM}, "securitySchemes": SCHEMES, "headers": HEADERS},
    }


def _schemas(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the schemas of all models: bodies as they are read, answers as they are written."""
    bodies = [operation.body for operation in operations if operation.body is not None]
    views = [body for operation in operations for body in operation.success.values() if not isinstance(body, str)]
    wanted: list[tuple[type[BaseModel], Any]] = [(body, "validation") for body in bodies]
    wanted += [(view, "serialization") for view in views]
    _, definitions = models_json_schema(list(dict.fromkeys(wanted)), ref_template=REF)
    found: dict[str, Any] = definitions.get("$defs", {})
    return found


def _operation(route: Route, operation: Operation) -> dict[str, object]:
    described: dict[str, object] = {
        "operationId": route.handler.__name__,
        "summary": operation.summary,
        "tags": [_tag(route.path)],
        "parameters": _parameters(route, operation),
        "security": SECURITY[operation.access],
        "responses": {**_successes(operation), **_problems(operation)},
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _content(operation.body)}
    return described


def _tag(path: str) -> str:
    if path.startswith("/api/v1/users"):
        return "accounts"
    return "operators" if path.startswith(("/api", "/metrics", "/livez", "/readyz", "/dev")) else "pages"


def _parameters(route: Route, operation: Operation) -> list[Mapping[str, object]]:
    names = re.findall(r"<(\w+)>", route.path)
    return [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in names] + [*operation.parameters]


def _successes(operation: Operation) -> dict[str, object]:
    """Describe the good answers, and the ones whose body is of the same kind."""
    answers: dict[str, object] = {}
    for status, body in operation.success.items():
        names = [
            "X-Request-ID",
            *(LIMIT_HEADERS if operation.limited else ()),
            *(["Location"] if status == CREATED else []),
        ]
        description = body if isinstance(body, str) else (body.__doc__ or "").strip()
        answers[str(status)] = {"description": description, "headers": _headers(names), "content": _content(body)}
    return answers


def _content(body: type[BaseModel] | str) -> dict[str, object]:
    if isinstance(body, str):
        return {body: {}}
    return {"application/json": {"schema": {"$ref": REF.format(model=body.__name__)}}}


def _headers(names: Iterable[str]) -> dict[str, object]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _problems(operation: Operation) -> dict[str, object]:
    """Describe the problems by status, with an example of each."""
    kinds = [*operation.problems, *(WITH_BODY if operation.body else ()), *ANY_CALL]
    kinds += [InvalidFields] if operation.parameters else []
    kinds += [RateLimited] if operation.limited else []
    kinds += [OpsTokenMissing, OpsTokenRequired, RateLimited] if operation.access == "ops" else []
    by_status: dict[int, list[type[Exception]]] = {}
    for kind in dict.fromkeys(kinds):
        by_status.setdefault(TABLE[kind].status, []).append(kind)
    return {
        str(status): _problem(same) for status, same in sorted(by_status.items()) if status not in operation.success
    }


def _problem(kinds: Sequence[type[Exception]]) -> dict[str, object]:
    examples = {TABLE[kind].code: {"summary": TABLE[kind].detail, "value": example(kind)} for kind in kinds}
    names = ["X-Request-ID"]
    names += ["Retry-After"] if any("retry_after" in example(kind) for kind in kinds) else []
    names += ["WWW-Authenticate"] if any("WWW-Authenticate" in TABLE[kind].headers for kind in kinds) else []
    schema = {"$ref": REF.format(model="Problem")}
    return {
        "description": " · ".join(examples),
        "headers": _headers(names),
        "content": {MEDIA: {"schema": schema, "examples": examples}},
    }
