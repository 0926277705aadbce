"""The lines of the route table: a method, a path, a handler, and what the description says about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pydantic import BaseModel
    from quart import Response


class Route(NamedTuple):
    """A method and a path, and who answers."""

    method: str
    path: str
    handler: Callable[..., Awaitable[Response]]

    @property
    def template(self) -> str:
        """The path as metrics and the description name it: `/activation/{token}`."""
        return template(self.path)


def template(rule: str) -> str:
    """Return a rule of the router with its variables in braces."""
    return rule.replace("<", "{").replace(">", "}")


HandlerT = TypeVar("HandlerT", bound="Callable[..., object]")

Access = Literal["public", "basic", "ops"]
ATTRIBUTE = "__operation__"


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """A header that a call reads; `pattern` is of the whole value."""

    name: str
    description: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One call as the description shows it; `success` has the body of each status, or its media type.

    `query` has the schema of each parameter, with its description. `problems` are its own; those of any call, and
    of any call for operators, are added for it.
    """

    summary: str
    success: Mapping[int, type[BaseModel] | str]
    body: type[BaseModel] | None = None
    access: Access = "public"
    problems: tuple[type[Exception], ...] = ()
    request_headers: tuple[RequestHeader, ...] = ()
    query: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    limited: bool = False


def describes(operation: Operation) -> Callable[[HandlerT], HandlerT]:
    """Attach the operation to a handler and leave the handler as it is."""

    def attach(handler: HandlerT) -> HandlerT:
        setattr(handler, ATTRIBUTE, operation)
        return handler

    return attach


def operation_of(handler: Callable[..., object]) -> Operation | None:
    """Return what the handler says about itself; None for one that is not part of the description."""
    operation = getattr(handler, ATTRIBUTE, None)
    return operation if isinstance(operation, Operation) else None
