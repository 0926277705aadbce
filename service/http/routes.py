"""A line of the route table."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

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
