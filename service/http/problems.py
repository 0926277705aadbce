"""The only table from errors to answers of 4xx and 5xx, as application/problem+json (RFC 9457).

A problem's code is stable, its slug is the code in kebab case, and `/problems/<slug>` explains it. Nothing here ever
repeats what a client sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actors.domain import errors as domain
from actors.kit.mailbox import AnswerLost, NotAccepted
from actors.ports import StoreUnavailable
from service.http import errors as http
from service.http.basic_auth import CHALLENGE
from service.http.problem_members import (
    attempts,
    failing,
    fields,
    idempotency_key,
    no_members,
    reasons,
    resend_url,
    typed_code_field,
    wait,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BEARER = 'Bearer realm="vestibule-ops"'


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of problem: its answer and, in `advice`, what a caller does about it."""

    status: int
    code: str
    detail: str
    advice: str
    members: Callable[[Any], dict[str, object]] = no_members
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The end of the problem's type."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", self.code).lower()

    @property
    def title(self) -> str:
        """The code in words: the same for every answer of this type."""
        return self.slug.replace("-", " ").capitalize()


CLOSE = {"Connection": "close"}  # what is left of the request on this connection cannot be trusted, or is not wanted
INTERNAL_ERROR = Problem(
    500,
    "InternalError",
    "Something went wrong on our side.",
    "Report it with the X-Request-ID. Whether the request was handled is not known.",
)
TABLE: Mapping[type[Exception], Problem] = {
    http.MalformedRequest: Problem(
        400,
        "MalformedRequest",
        "The request could not be read.",
        "Send one JSON object in UTF-8, each member once, without NaN and lone surrogates.",
    ),
    http.AmbiguousLength: Problem(
        400,
        "MalformedRequest",
        "The request could not be read.",
        "Send Content-Length or Transfer-Encoding, not both.",
        headers=CLOSE,
    ),
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
    http.OpsTokenMissing: Problem(
        401,
        "OpsTokenRequired",
        "This is for operators, who send a token.",
        "Send `Authorization: Bearer` with the value of VESTIBULE_OPS_TOKEN.",
        headers={"WWW-Authenticate": BEARER},
    ),
    http.OpsTokenRequired: Problem(
        403,
        "OpsTokenRequired",
        "This is for operators on the machine itself.",
        "Set VESTIBULE_OPS_TOKEN and send it, or ask from this machine, by a loopback name and without a proxy.",
    ),
    http.UnknownPath: Problem(404, "NotFound", "Nothing is here.", "Look the path up in /docs."),
    domain.UnknownStatus: Problem(
        404, "NotFound", "Nothing is here.", "A status address is known for a day; afterwards ask with Basic auth."
    ),
    http.MethodRefused: Problem(
        405, "MethodNotAllowed", "This path does not answer the method.", "Use one of the methods named in `Allow`."
    ),
    http.BodyTimeout: Problem(
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
    domain.RequestInProgress: Problem(
        409,
        "RequestInProgress",
        "The first request with this Idempotency-Key still runs.",
        "Repeat the same request after `Retry-After`.",
        wait,
    ),
    domain.CodeExpired: Problem(
        410, "ActivationCodeExpired", "The code's time is over.", "Ask for a new one at `resend_url`.", resend_url
    ),
    http.BodyTooLarge: Problem(
        413, "BodyTooLarge", "The body is over 16 KiB.", "Send the fields of the request only.", headers=CLOSE
    ),
    http.UnsupportedMedia: Problem(
        415,
        "UnsupportedMediaType",
        "Send the body as application/json.",
        "Send application/json in UTF-8, without a content coding.",
    ),
    http.InvalidFields: Problem(
        422, "ValidationError", "Some fields are not valid.", "Mend the fields named in `errors`.", fields
    ),
    domain.InvalidCode: Problem(
        422, "ValidationError", "Some fields are not valid.", "Mend the fields named in `errors`.", typed_code_field
    ),
    domain.IdempotencyKeyInvalid: Problem(
        422, "ValidationError", "Some fields are not valid.", "Mend the fields named in `errors`.", idempotency_key
    ),
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
    http.HeadersTooLarge: Problem(
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
    http.NotReady: Problem(
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
    slugs: dict[str, list[Problem]] = {}
    for problem in TABLE.values():
        same = slugs.setdefault(problem.slug, [])
        if (problem.status, problem.detail, problem.advice) not in {(p.status, p.detail, p.advice) for p in same}:
            same.append(problem)
    return slugs
