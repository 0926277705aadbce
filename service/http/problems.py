"""Problem answers (RFC 9457): the one table from errors to status, title and detail."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

from werkzeug import exceptions as werkzeug

from actors.domain import errors as domain
from actors.domain.errors import InvalidEmail
from actors.kit.mailbox import AnswerLost, MachineError, NotAccepted
from actors.ports import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from actors.domain.errors import InvalidCode, WaitRefusal, WeakPassword, WrongCode


RESEND_URL = "/api/v1/users/resend"
CHALLENGE = 'Basic realm="vestibule", charset="UTF-8"'


class RequestRefused(Exception):
    """The request did not reach a flow."""


@dataclass(eq=False)
class MalformedRequest(RequestRefused):
    """The bytes are no request of this service; `reason` is one of our own sentences."""

    reason: str = "The request could not be read."


class AmbiguousLength(MalformedRequest):
    """The message announces its length in two ways: what follows on the connection cannot be trusted."""


class BodyTooLarge(RequestRefused):
    """The body is over the limit and was not read."""


class BodyTimeout(RequestRefused):
    """The body did not arrive in time."""


@dataclass(eq=False)
class UnsupportedMedia(RequestRefused):
    """The body is announced as something other than JSON in UTF-8; `reason` says what to mend."""

    reason: str


@dataclass(eq=False)
class InvalidFields(RequestRefused):
    """The object's fields are wrong; `errors` are pairs of a field's name and a sentence."""

    errors: Sequence[tuple[str, str]]


class HeadersTooLarge(RequestRefused):
    """The request line and headers are over the limit."""


class UnknownPath(RequestRefused):
    """No route has this path."""


@dataclass(eq=False)
class MethodRefused(RequestRefused):
    """The route answers `allowed` methods only."""

    allowed: Sequence[str]


class OpsTokenMissing(RequestRefused):
    """The operators' token is set and was not sent, or another was."""


class OpsTokenRequired(RequestRefused):
    """No operators' token is set, and the request does not come from this machine itself."""


@dataclass(eq=False)
class NotReady(RequestRefused):
    """The process cannot take registrations; `failing` names the checks."""

    failing: Sequence[str]


def no_members(_: Exception) -> dict[str, object]:
    """Say nothing more."""
    return {}


def wait(error: WaitRefusal | MachineError) -> dict[str, object]:
    """Say when to repeat, rounded up to whole seconds and at least one: waiting that long is enough."""
    return {"retry_after": max(1, ceil(error.retry_after))}


def attempts(error: WrongCode) -> dict[str, object]:
    """Say how many attempts are left, and whether an older code was typed."""
    left: dict[str, object] = {"attempts_left": error.attempts_left}
    return left | ({"superseded": True} if error.superseded else {})


def reasons(error: WeakPassword) -> dict[str, object]:
    """Say every rule that the password breaks."""
    return {"reasons": list(error.reasons)}


def resend_url(_: Exception) -> dict[str, object]:
    """Say where to ask for a new code."""
    return {"resend_url": RESEND_URL}


def fields(errors: Iterable[tuple[str, str]]) -> dict[str, object]:
    """Say what is wrong with which field."""
    return {"errors": [{"field": name, "message": message} for name, message in errors]}


def code_field(error: InvalidCode) -> dict[str, object]:
    """Say what a code looks like."""
    return fields([("activation_code", f"must be {error.digits} digits")])


def key_field(_: Exception) -> dict[str, object]:
    """Say what an idempotency key looks like."""
    return fields([("Idempotency-Key", "must be 1 to 64 visible ASCII characters, in one header")])


def failing(error: NotReady) -> dict[str, object]:
    """Name the checks that failed."""
    return {"failing": list(error.failing)}


BEARER = 'Bearer realm="vestibule-ops"'


@dataclass(frozen=True)
class Problem:
    """One kind of problem: its answer and, in `advice`, what a caller does about it."""

    status: int
    code: str
    detail: str
    advice: str
    members: Callable[[Any], dict[str, object]] = no_members
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def slug(self) -> str:
        """The end of the problem's type."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", self.code).lower()

    @cached_property
    def title(self) -> str:
        """The code in words: the same for every answer of this type."""
        return self.slug.replace("-", " ").capitalize()


CLOSE = {"Connection": "close"}  # what is left of the request on this connection cannot be trusted, or is not wanted
MALFORMED = Problem(
    400,
    "MalformedRequest",
    "The request could not be read.",
    "Send one JSON object in UTF-8, each member once, without NaN and lone surrogates.",
)
INVALID = Problem(422, "ValidationError", "Some fields are not valid.", "Mend the fields named in `errors`.")
INTERNAL_ERROR = Problem(
    500,
    "InternalError",
    "Something went wrong on our side.",
    "Report it with the X-Request-ID. Whether the request was handled is not known.",
)
TABLE: Mapping[type[Exception], Problem] = {
    MalformedRequest: MALFORMED,
    AmbiguousLength: replace(MALFORMED, advice="Send Content-Length or Transfer-Encoding, not both.", headers=CLOSE),
    domain.WrongCode: Problem(
        400,
        "InvalidActivationCode",
        "This is not the code.",
        "Type the code from the latest mail. `superseded` says that it was an older one, which cost no attempt.",
        attempts,
    ),
    domain.InvalidCredentials: Problem(
        401,
        "InvalidCredentials",
        "The e-mail address or the password is wrong.",
        "Send Basic auth with the address and the password of the registration.",
        headers={"WWW-Authenticate": CHALLENGE},
    ),
    OpsTokenMissing: Problem(
        401,
        "OpsTokenRequired",
        "This is for operators, who send a token.",
        "Send `Authorization: Bearer` with the value of VESTIBULE_OPS_TOKEN.",
        headers={"WWW-Authenticate": BEARER},
    ),
    OpsTokenRequired: Problem(
        403,
        "OpsTokenRequired",
        "This is for operators on the machine itself.",
        "Set VESTIBULE_OPS_TOKEN and send it, or ask from this machine, by a loopback name and without a proxy.",
    ),
    UnknownPath: Problem(404, "NotFound", "Nothing is here.", "Look the path up in /docs."),
    domain.UnknownStatus: Problem(
        404, "NotFound", "Nothing is here.", "A status address is known for a day; afterwards ask with Basic auth."
    ),
    MethodRefused: Problem(
        405, "MethodNotAllowed", "This path does not answer the method.", "Use one of the methods named in `Allow`."
    ),
    BodyTimeout: Problem(
        408, "RequestTimeout", "The body did not arrive in time.", "Send the body at once.", headers=CLOSE
    ),
    domain.EmailTaken: Problem(
        409,
        "UserAlreadyExists",
        "An account with this address exists or waits for its code.",
        "Activate it with the code, ask for another one, or register again when the code is dead.",
    ),
    domain.AlreadyActivated: Problem(
        409, "UserAlreadyActivated", "The account is active already.", "Nothing is left to do."
    ),
    domain.IdempotencyKeyReused: Problem(
        409,
        "IdempotencyKeyReused",
        "This Idempotency-Key came with another body before.",
        "Use a new key for each new request.",
    ),
    domain.ActivationFailed: Problem(
        400,
        "ActivationFailed",
        "The account was not activated.",
        "Check the address, the password and the code of the latest mail, or ask for a new code.",
    ),
    domain.CodeExpired: Problem(
        410, "ActivationCodeExpired", "The code's time is over.", "Ask for a new one at `resend_url`.", resend_url
    ),
    BodyTooLarge: Problem(
        413, "BodyTooLarge", "The body is over 16 KiB.", "Send the fields of the request only.", headers=CLOSE
    ),
    UnsupportedMedia: Problem(
        415,
        "UnsupportedMediaType",
        "Send the body as application/json.",
        "Send application/json in UTF-8, without a content coding.",
    ),
    InvalidFields: replace(INVALID, members=lambda error: fields(error.errors)),
    domain.InvalidCode: replace(INVALID, members=code_field),
    domain.IdempotencyKeyInvalid: replace(INVALID, members=key_field),
    domain.InvalidEmail: Problem(
        422, "InvalidEmail", "This is no e-mail address that we can write to.", "Send a plain address: name@domain."
    ),
    domain.WeakPassword: Problem(
        422,
        "WeakPassword",
        "The password is not good enough.",
        "Mend what `reasons` name: too_short (under 8 bytes), too_long (over 72), common, contains_address.",
        reasons,
    ),
    domain.RateLimited: Problem(
        429, "RateLimitExceeded", "Too many requests.", "Wait `retry_after` seconds; that is enough.", wait
    ),
    domain.ResendTooSoon: Problem(
        429, "ResendTooSoon", "The last code was sent a moment ago.", "Wait `retry_after` seconds.", wait
    ),
    domain.CodesExhausted: Problem(
        429,
        "CodesExhausted",
        "This address has had all the codes it can have for now.",
        "Wait `retry_after` seconds.",
        wait,
    ),
    domain.CodeAttemptsExhausted: Problem(
        429,
        "CodeAttemptsExhausted",
        "Too many wrong attempts: the code is dead.",
        "Ask for a new code after `retry_after` seconds.",
        wait,
    ),
    HeadersTooLarge: Problem(
        431, "HeadersTooLarge", "The request's headers are too large.", "Send fewer or shorter headers.", headers=CLOSE
    ),
    NotAccepted: Problem(
        503,
        "Busy",
        "The service has more to do than it can.",
        "Nothing was done: repeat the request after `retry_after` seconds.",
        wait,
    ),
    StoreUnavailable: Problem(
        503,
        "StoreUnavailable",
        "The database cannot be reached.",
        "Nothing was done: repeat the request after `retry_after` seconds.",
        wait,
    ),
    AnswerLost: Problem(
        503,
        "OutcomeUnknown",
        "The request was accepted, and its outcome got lost.",
        "Repeat it after `retry_after` seconds, a registration with the same Idempotency-Key.",
        wait,
    ),
    NotReady: Problem(
        503,
        "NotReady",
        "This process cannot take registrations now.",
        "Send requests to another process; `failing` names the checks.",
        failing,
    ),
    Exception: INTERNAL_ERROR,
}


def problem_of(error: Exception) -> Problem:
    """Return the entry of the error's type, or of the nearest type that it derives from."""
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def by_slug() -> dict[str, list[Problem]]:
    """Return every problem under its slug, in the table's order."""
    slugs: dict[str, dict[str, Problem]] = {}
    for problem in TABLE.values():
        slugs.setdefault(problem.slug, {}).setdefault(f"{problem.status} {problem.detail} {problem.advice}", problem)
    return {slug: list(problems.values()) for slug, problems in slugs.items()}


MEDIA = "application/problem+json"


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
    problem = problem_of(error)
    members, headers = problem.members(error), dict(problem.headers)
    if "resend_url" in members:
        members["resend_url"] = f"{root}{RESEND_URL}"
    if "retry_after" in members:
        headers["Retry-After"] = str(members["retry_after"])
    if isinstance(error, MethodRefused):
        headers["Allow"] = ", ".join(sorted(error.allowed))
    body = {
        "type": f"/problems/{problem.slug}",
        "title": problem.title,
        "status": problem.status,
        "detail": _detail(error) or problem.detail,
        "error": problem.code,
        **members,
    }
    return ProblemAnswer(problem.status, json.dumps(body), headers)


def _detail(error: Exception) -> str | None:
    """Return the sentence of the few errors that have one of their own, written by us and without any input."""
    match error:
        case MalformedRequest(reason=text) | UnsupportedMedia(reason=text) | InvalidEmail(message=text):
            return str(text)
        case _:
            return None


def _ours(error: Exception) -> Exception:
    """Translate what the framework raises before a handler runs."""
    match error:
        case werkzeug.NotFound():
            return UnknownPath()
        case werkzeug.MethodNotAllowed():
            return MethodRefused(list(error.valid_methods or ()))
        case werkzeug.RequestEntityTooLarge():
            return BodyTooLarge()
        case werkzeug.BadRequest():
            return MalformedRequest()
        case _:
            return error


SAMPLES: Mapping[type[Exception], Exception] = {
    MalformedRequest: MalformedRequest("The body is not JSON."),
    UnsupportedMedia: UnsupportedMedia("Send the body as application/json."),
    InvalidFields: InvalidFields([("password", "is required")]),
    MethodRefused: MethodRefused(("GET", "HEAD", "OPTIONS")),
    NotReady: NotReady(("database",)),
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
