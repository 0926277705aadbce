"""Problem answers (RFC 9457): the one table from errors to status, title and detail."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING

from werkzeug import exceptions as werkzeug

from actors.domain import errors as domain
from actors.kit.mailbox import AnswerLost, MachineError, NotAccepted
from actors.ports import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MEDIA = "application/problem+json"
KEY_RULE = "must be 1 to 64 visible ASCII characters, in one header"
RESEND_URL = "/api/v1/users/resend"
BASIC = {"WWW-Authenticate": 'Basic realm="vestibule", charset="UTF-8"'}
BEARER = {"WWW-Authenticate": 'Bearer realm="vestibule-ops"'}
CLOSE = {"Connection": "close"}  # what is left of the request on this connection cannot be trusted, or is not wanted


@dataclass(eq=False)
class RequestRefused(Exception):
    """The request did not reach a flow; a `reason` is a sentence of ours instead of the table's, without any input."""

    reason: str | None = None


class MalformedRequest(RequestRefused):
    """The bytes are no request of this service."""


class AmbiguousLength(MalformedRequest):
    """The message announces its length in two ways: what follows on the connection cannot be trusted."""


class BodyTooLarge(RequestRefused):
    """The body is over the limit and was not read."""


class BodyTimeout(RequestRefused):
    """The body did not arrive in time."""


class UnsupportedMedia(RequestRefused):
    """The body is announced as something other than JSON in UTF-8."""


class InvalidFields(RequestRefused):
    """The object's fields are wrong; `errors` are pairs of a field's name and a sentence."""

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.errors = errors


class HeadersTooLarge(RequestRefused):
    """The request line and headers are over the limit."""


class UnknownPath(RequestRefused):
    """No route has this path."""


class MethodRefused(RequestRefused):
    """The route answers `allowed` methods only."""

    def __init__(self, allowed: Iterable[str]) -> None:
        super().__init__()
        self.allowed = allowed


class OpsTokenMissing(RequestRefused):
    """The operators' token is set and was not sent, or another was."""


class OpsTokenRequired(RequestRefused):
    """No operators' token is set, and the request does not come from this machine itself."""


class NotReady(RequestRefused):
    """The process cannot take registrations; `failing` names the checks."""

    def __init__(self, failing: Sequence[str]) -> None:
        super().__init__()
        self.failing = failing


@dataclass(frozen=True, eq=False)
class Problem:
    """One kind of problem: its answer and, in `advice`, what a caller does about it."""

    status: int
    code: str
    detail: str
    advice: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def slug(self) -> str:
        """The end of the problem's type."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", self.code).lower()

    @cached_property
    def title(self) -> str:
        """The code in words: the same for every answer of this type."""
        return self.slug.replace("-", " ").capitalize()

    @property
    def body(self) -> dict[str, object]:
        """The members that every problem has."""
        return {
            "type": f"/problems/{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "error": self.code,
        }


# A row: status, code and detail; then what a caller does about it.
# fmt: off
MALFORMED = Problem(400, "MalformedRequest", "The request could not be read.",
    "Send one JSON object in UTF-8, each member once, without NaN and lone surrogates.")
INVALID = Problem(422, "ValidationError", "Some fields are not valid.", "Mend the fields named in `errors`.")
INTERNAL_ERROR = Problem(500, "InternalError", "Something went wrong on our side.",
    "Report it with the X-Request-ID. Whether the request was handled is not known.")
TABLE: Mapping[type[Exception], Problem] = {
    MalformedRequest: MALFORMED,
    AmbiguousLength: replace(MALFORMED, advice="Send Content-Length or Transfer-Encoding, not both.", headers=CLOSE),
    domain.WrongCode: Problem(400, "InvalidActivationCode", "This is not the code.",
        "Type the code from the latest mail. `superseded` says that it was an older one, which cost no attempt."),
    domain.ActivationFailed: Problem(400, "ActivationFailed", "The account was not activated.",
        "Check the address, the password and the code of the latest mail, or ask for a new code."),
    domain.InvalidCredentials: Problem(401, "InvalidCredentials",
        "The e-mail address or the password is wrong, or not sent in UTF-8.",
        "Send Basic auth with the address and the password of the registration.", BASIC),
    OpsTokenMissing: Problem(401, "OpsTokenRequired", "This is for operators, who send a token.",
        "Send `Authorization: Bearer` with the value of VESTIBULE_OPS_TOKEN.", BEARER),
    OpsTokenRequired: Problem(403, "OpsTokenRequired", "This is for operators on the machine itself.",
        "Set VESTIBULE_OPS_TOKEN and send it, or ask from this machine, by a loopback name and without a proxy."),
    UnknownPath: Problem(404, "NotFound", "Nothing is here.", "Look the path up in /docs."),
    domain.UnknownStatus: Problem(404, "NotFound", "Nothing is here.",
        "A status address is known for a day; afterwards ask with Basic auth."),
    MethodRefused: Problem(405, "MethodNotAllowed", "This path does not answer the method.",
        "Use one of the methods named in `Allow`."),
    BodyTimeout: Problem(408, "RequestTimeout", "The body did not arrive in time.", "Send the body at once.", CLOSE),
    domain.EmailTaken: Problem(409, "UserAlreadyExists", "An account with this address exists or waits for its code.",
        "Activate it with the code, ask for another one, or register again when the code is dead."),
    domain.AlreadyActivated: Problem(409, "UserAlreadyActivated", "The account is active already.",
        "Nothing is left to do."),
    domain.IdempotencyKeyReused: Problem(409, "IdempotencyKeyReused",
        "This Idempotency-Key came with another body before.", "Use a new key for each new request."),
    domain.CodeExpired: Problem(410, "ActivationCodeExpired", "The code's time is over.",
        "Ask for a new one at `resend_url`."),
    BodyTooLarge: Problem(413, "BodyTooLarge", "The body is over 16 KiB.",
        "Send the fields of the request only.", CLOSE),
    UnsupportedMedia: Problem(415, "UnsupportedMediaType", "Send the body as application/json.",
        "Send application/json in UTF-8, without a content coding."),
    InvalidFields: INVALID,
    domain.InvalidCode: INVALID,
    domain.IdempotencyKeyInvalid: INVALID,
    domain.InvalidEmail: Problem(422, "InvalidEmail", "This is no e-mail address that we can write to.",
        "Send a plain address: name@domain."),
    domain.WeakPassword: Problem(422, "WeakPassword", "The password is not good enough.",
        "Mend what `reasons` name: too_short (under 8 bytes), too_long (over 72), common, contains_address."),
    domain.RateLimited: Problem(429, "RateLimitExceeded", "Too many requests.",
        "Wait `retry_after` seconds; that is enough."),
    domain.ResendTooSoon: Problem(429, "ResendTooSoon", "The last code was sent a moment ago.",
        "Wait `retry_after` seconds."),
    domain.CodesExhausted: Problem(429, "CodesExhausted", "This address has had all the codes it can have for now.",
        "Wait `retry_after` seconds."),
    domain.CodeAttemptsExhausted: Problem(429, "CodeAttemptsExhausted",
        "Too many wrong attempts: the code is dead.", "Ask for a new code after `retry_after` seconds."),
    HeadersTooLarge: Problem(431, "HeadersTooLarge", "The request's headers are too large.",
        "Send fewer or shorter headers.", CLOSE),
    NotAccepted: Problem(503, "Busy", "The service has more to do than it can.",
        "Nothing was done: repeat the request after `retry_after` seconds."),
    StoreUnavailable: Problem(503, "StoreUnavailable", "The database cannot be reached.",
        "Nothing was done: repeat the request after `retry_after` seconds."),
    AnswerLost: Problem(503, "OutcomeUnknown", "The request was accepted, and its outcome got lost.",
        "Repeat it after `retry_after` seconds, a registration with the same Idempotency-Key."),
    NotReady: Problem(503, "NotReady", "This process cannot take registrations now.",
        "Send requests to another process; `failing` names the checks."),
    Exception: INTERNAL_ERROR,
}
# fmt: on


def by_slug() -> dict[str, list[Problem]]:
    """Return every problem under its slug, in the table's order."""
    slugs: dict[str, list[Problem]] = {}
    for problem in dict.fromkeys(TABLE.values()):
        slugs.setdefault(problem.slug, []).append(problem)
    return slugs


@dataclass(frozen=True, slots=True)
class ProblemAnswer:
    """A problem as it goes out."""

    status: int
    body: str = field(repr=False)
    headers: Mapping[str, str]


def answer_to(error: Exception, root: str = "") -> ProblemAnswer:
    """Return the answer to an error; what is not in the table is a 500 without a word of it.

    `root` is the path of PUBLIC_URL, under which every link lies; a problem's type is a name and stays as it is.
    """
    error = _ours(error)
    problem = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)  # of the nearest type
    headers, body = dict(problem.headers), problem.body | _members(error, root)
    if "retry_after" in body:
        headers["Retry-After"] = str(body["retry_after"])
    match error:
        case MethodRefused():
            headers["Allow"] = ", ".join(sorted(error.allowed))
        case RequestRefused(reason=str(text)) | domain.InvalidEmail(message=text):
            body["detail"] = text
    return ProblemAnswer(problem.status, json.dumps(body), headers)


def _ours(error: Exception) -> Exception:
    """Translate what the framework raises before a handler runs."""
    match error:
        case werkzeug.NotFound():
            return UnknownPath()
        case werkzeug.MethodNotAllowed():
            return MethodRefused(error.valid_methods or ())
        case werkzeug.RequestEntityTooLarge():
            return BodyTooLarge()
        case werkzeug.BadRequest():
            return MalformedRequest()
    return error


def _members(error: Exception, root: str) -> dict[str, object]:
    """Return what an answer says besides the members of every problem; waits in whole seconds, rounded up."""
    members: dict[str, object] = {}
    match error:
        case domain.WaitRefusal() | MachineError():
            members["retry_after"] = max(1, ceil(error.retry_after))
        case domain.WrongCode():
            members["attempts_left"] = error.attempts_left
            if error.superseded:
                members["superseded"] = True
        case domain.WeakPassword():
            members["reasons"] = error.reasons
        case domain.CodeExpired():
            members["resend_url"] = f"{root}{RESEND_URL}"
        case NotReady():
            members["failing"] = error.failing
        case InvalidFields():
            members["errors"] = _field_errors(error.errors)
        case domain.InvalidCode():
            members["errors"] = _field_errors([("activation_code", f"must be {error.digits} digits")])
        case domain.IdempotencyKeyInvalid():
            members["errors"] = _field_errors([("Idempotency-Key", KEY_RULE)])
    return members


def _field_errors(errors: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"field": name, "message": message} for name, message in errors]
