"""HTTP has refusals of its own, before and beside those of the flows.

The tree::

    RequestRefused
    ├── MalformedRequest     not UTF-8, not JSON or not an object
    │   └── AmbiguousLength  two servers would read the message differently
    ├── BodyTooLarge         more bytes than any request of this service needs
    ├── BodyTimeout          the body did not arrive in time
    ├── UnsupportedMedia     anything but JSON in UTF-8 without content coding
    ├── InvalidFields        well-formed JSON with wrong fields
    ├── HeadersTooLarge      a header block that nobody needs
    ├── UnknownPath          nothing is there
    ├── MethodRefused        something is there, but not for this method
    ├── OpsTokenMissing      operators only: no token, or a wrong one
    ├── OpsTokenRequired     operators only: without a token set, this machine only
    └── NotReady             the process cannot take registrations now

None of them holds anything that the client sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class RequestRefused(Exception):
    """The request did not reach a flow."""


class MalformedRequest(RequestRefused):
    """The bytes are no request of this service; `reason` is one of our own sentences."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


class AmbiguousLength(MalformedRequest):
    """The message announces its length in two ways: what follows on the connection cannot be trusted."""

    def __init__(self) -> None:
        super().__init__("The request announces its length twice.")


class BodyTooLarge(RequestRefused):
    """The body is over the limit and was not read."""


class BodyTimeout(RequestRefused):
    """The body did not arrive in time."""


class UnsupportedMedia(RequestRefused):
    """The body is announced as something other than JSON in UTF-8; `reason` says what to mend."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


class InvalidFields(RequestRefused):
    """The object's fields are wrong; `errors` are pairs of a field's name and a sentence."""

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.errors = tuple(errors)


class HeadersTooLarge(RequestRefused):
    """The request line and headers are over the limit."""


class UnknownPath(RequestRefused):
    """No route has this path."""


class MethodRefused(RequestRefused):
    """The route answers `allowed` methods only."""

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__()
        self.allowed = tuple(sorted(allowed))


class OpsTokenMissing(RequestRefused):
    """The operators' token is set and was not sent, or another was."""


class OpsTokenRequired(RequestRefused):
    """No operators' token is set, and the request does not come from this machine itself."""


class NotReady(RequestRefused):
    """The process cannot take registrations; `failing` names the checks."""

    def __init__(self, failing: Sequence[str]) -> None:
        super().__init__()
        self.failing = tuple(failing)
