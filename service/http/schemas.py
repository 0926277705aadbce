"""What clients send and what they get, field by field; the description in /openapi.json is made from these."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from math import ceil
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar
from uuid import UUID  # noqa: TC003 - pydantic reads it

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from quart import Response, current_app

from actors.domain.code import SPACERS, typed_code
from actors.domain.errors import InvalidCode
from actors.domain.user import State  # noqa: TC001 - pydantic reads it
from service.http.problems import InvalidFields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actors.signup import Registration

TextT = TypeVar("TextT", str, SecretStr)

API = "/api/v1/users"
CONTROLS = r"\u0000-\u001f\u007f-\u009f"  # C0, DEL and C1, as a class of regular expressions has them
CONTROL = re.compile(f"[{CONTROLS}]")
LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")  # BCP 47 in its outline


def _printable(value: TextT) -> TextT:
    if controls(value.get_secret_value() if isinstance(value, SecretStr) else value):
        raise ValueError("must not hold control characters")
    return value


def _language_tag(value: str) -> str:
    if not LANGUAGE_TAG.fullmatch(value):
        raise ValueError("must be a language tag such as en or de-AT")
    return value


PRINTABLE = Field(json_schema_extra={"pattern": f"^[^{CONTROLS}]*$"})
Text = Annotated[str, AfterValidator(_printable), PRINTABLE]
Secret = Annotated[SecretStr, AfterValidator(_printable), PRINTABLE]
LanguageTag = Annotated[
    str, AfterValidator(_language_tag), Field(json_schema_extra={"pattern": f"^{LANGUAGE_TAG.pattern}$"})
]
Time = Annotated[datetime, BeforeValidator(lambda value: value.astimezone(UTC))]
Seconds = Annotated[int, BeforeValidator(lambda value: value if value is None else ceil(value)), Field(ge=0)]


def controls(text: str) -> bool:
    """Whether the text holds a control character (C0, DEL or C1)."""
    return CONTROL.search(text) is not None


class Sent(BaseModel):
    """A body: strict types, no other fields, nothing of it in errors."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)


class RegisterRequest(Sent):
    """A new account."""

    email: Text = Field(description="At most 254 bytes; where the code is sent.", examples=["ada@example.com"])
    password: Secret = Field(description="8 to 72 bytes in UTF-8 after NFC.", examples=["correct horse battery"])
    locale: LanguageTag | None = Field(None, description="Language of the mail; else Accept-Language.", examples=["en"])


CODE_NAMES = ("activation_code", "code")
SPACER = f"[{SPACERS.replace('-', '')}-]*"  # a hyphen is itself at the end of a class
Code = Annotated[SecretStr, Field(json_schema_extra={"pattern": f"^{SPACER}(?:[0-9]{SPACER}){{4,10}}$"})]


class ActivateRequest(Sent):
    """The code from the mail, under exactly one of two names; blanks and hyphens in it are ignored."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [given], "properties": {given: {"type": "string"}, other: {"type": "null"}}}
                for given, other in (CODE_NAMES, reversed(CODE_NAMES))
            ]
        }
    )
    activation_code: Code | None = Field(None, description="The code from the mail.", examples=["012345"])
    code: Code | None = Field(None, description="The same under a shorter name.", examples=["012345"])

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.activation_code is None) == (self.code is None):
            raise ValueError("must hold exactly one of activation_code and code")
        return self

    def digits(self, digits: int) -> str:
        """Return the code; raises InvalidFields, which costs no attempt, unless it has `digits` ASCII digits."""
        [(name, text)] = [(name, each) for name in CODE_NAMES if (each := getattr(self, name)) is not None]
        try:
            return typed_code(text.get_secret_value(), digits)
        except InvalidCode:
            raise InvalidFields([(name, f"must be {digits} digits")]) from None


class View(BaseModel):
    """A success body."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    @classmethod
    def of(cls, shown: object) -> Self:
        """Return the body that shows an object, by its attributes of the same names."""
        return cls.model_validate(shown)

    def response(self, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        """Return the answer; the edge adds the headers that every answer has."""
        return response(self.model_dump_json(), "application/json", status, headers)


def response(body: str | bytes, media: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer of the application's own class, which differs between the loops."""
    answer: Response = current_app.response_class(body, status, dict(headers or {}), content_type=media)
    return answer


class RegisteredView(View):
    """An account that waits for its code."""

    id: UUID
    email: str
    is_activated: Literal[False] = False
    created_at: Time
    message: str = "We have sent a code to your address. Activate your account with it."
    status_url: str = Field(description="Shows how far the mail is; unguessable, needs no password.")

    @classmethod
    def under(cls, root: str, registration: Registration) -> RegisteredView:
        """Show a registration to the client that made it; `root` is the path that the service lies under."""
        status_url = f"{root}{API}/activation/{registration.status_token}"
        return cls(
            id=registration.id, email=registration.email, created_at=registration.created_at, status_url=status_url
        )


class AcceptedView(View):
    """The answer to every registration and resend under ENUMERATION=strict, whatever the address is."""

    email: str
    message: str = "If the address can be registered, a code is on its way to it."


class ActivatedView(View):
    """An account that is active now."""

    email: str
    is_activated: Literal[True] = True
    activated_at: Time
    message: str = "Your account is active."


class ResendView(View):
    """A new code is on its way."""

    email: str
    resend_in: Seconds
    codes_left_today: int | None = Field(description="Null when nothing limits them.")
    message: str = "We have sent a new code to your address."


class StateView(View):
    """Where a registration stands."""

    state: State = Field(
        description=(
            "queued, sending: the mail has yet to leave. accepted, delivered: the code's time runs. "
            "expired, exhausted, undeliverable: the code is dead, ask for another one or register again. "
            "activated: nothing is left to do."
        )
    )
    code_expires_in: Seconds | None = Field(description="Null until the mail is accepted.")
    attempts_left: int
    resend_in: Seconds


class ProgressView(StateView):
    """Where the caller's own registration stands."""

    email: str


class ProfileView(View):
    """An account as its owner sees it."""

    id: UUID
    email: str
    is_activated: bool
    created_at: Time
    activated_at: Time | None
