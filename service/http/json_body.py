"""The gate that every body passes: bytes to strict UTF-8 to one JSON object to a model, or a refusal.

Stricter than RFC 8259 where it leaves a choice: no duplicate names, no NaN, no lone surrogates, no deep nesting, so
that what we read is what any other reader of the same bytes would read.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from quart import request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header

from service.http.middleware import BODY_SECONDS
from service.http.problems import BodyTimeout, BodyTooLarge, InvalidFields, MalformedRequest, UnsupportedMedia
from service.http.schemas import Sent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic_core import ErrorDetails

    from service.http.middleware import Application, Event, Receive, Scope, Send

ModelT = TypeVar("ModelT", bound=BaseModel)

MOST_BYTES = 16 * 1024  # an address, a password and a locale need less than one
LINGER_SECONDS = 2.0  # for what comes after the answer
MOST_ERRORS = 10
FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
SENTENCES = {
    "missing": "is required",
    "extra_forbidden": "is not a field of this request",
    "string_type": "must be a string",
}


async def read(model: type[ModelT]) -> ModelT:
    """Return the request's body as `model`; raises a RequestRefused that says what is wrong, never what was sent."""
    check_media(request.headers.getlist("Content-Type"), request.headers.getlist("Content-Encoding"))
    return checked(model, parse(await body()))


async def read_nothing() -> None:
    """Accept no body at all, or an object without members."""
    if await body():
        await read(Sent)


async def body() -> bytes:
    """Return the request's bytes; raises BodyTooLarge, unread when its length was announced, or BodyTimeout."""
    try:
        with anyio.fail_after(BODY_SECONDS):
            raw: bytes = await request.body
            return raw
    except TimeoutError:
        raise BodyTimeout from None
    except RequestEntityTooLarge:
        raise BodyTooLarge from None


def bounded(application: Application) -> Application:
    """Return the application as it is, but that for it a body ends with the piece that goes beyond MOST_BYTES.

    Quart 0.23 looks at the size of a body that has ended, and until then keeps whatever a client sends. What the client
    still sends after an answer is thrown away, for LINGER_SECONDS: a proxy whose request is cut off forgets the answer
    (RFC 9112, 9.6).
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        size, complete, held = 0, scope["type"] != "http", False

        async def arrived() -> Event:
            nonlocal complete
            event = await receive()
            complete = complete or not event.get("more_body")
            return event

        async def take() -> Event:
            nonlocal size
            while True:
                event = await arrived()
                before, size = size, size + len(event.get("body", b""))
                if event["type"] == "http.disconnect" or size <= MOST_BYTES:
                    return event
                if before <= MOST_BYTES:
                    return {**event, "more_body": False}

        async def answer(event: Event) -> None:
            nonlocal held
            held = not complete and event["type"] == "http.response.body" and not event.get("more_body")
            await send({**event, "more_body": True} if held else event)

        await application(scope, take, answer)
        if held:
            with anyio.move_on_after(LINGER_SECONDS):
                while not complete:
                    await arrived()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return serve


def check_media(types: Sequence[str], codings: Sequence[str]) -> None:
    """Raise UnsupportedMedia for anything but `application/json`, in UTF-8 if it says so, without content coding."""
    if any(coding.strip().lower() not in {"", "identity"} for coding in codings):
        raise UnsupportedMedia("Send the body without a content coding.")
    media, options = parse_options_header(types[0]) if len(types) == 1 else ("", {})
    if media.lower() != "application/json":
        raise UnsupportedMedia("Send the body as application/json.")
    unread = "charset" in types[0].lower() and "charset" not in options
    if unread or options.get("charset", "utf-8").lower() not in {"utf-8", "utf8"}:
        raise UnsupportedMedia("Send the body in UTF-8.")


def parse(raw: bytes) -> dict[str, object]:
    """Return the one JSON object that `raw` is; raises MalformedRequest."""
    try:
        from_json(raw, allow_inf_nan=False)  # stricter than the standard library in all but equal names
        value = json.loads(raw, object_pairs_hook=_unique)
    except ValueError:
        raise MalformedRequest("The body is not strict JSON in UTF-8.") from None
    if not isinstance(value, dict):
        raise MalformedRequest("The body is not a JSON object.")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedRequest("The body names one member twice.")
    return members


def checked(model: type[ModelT], members: dict[str, Any]) -> ModelT:
    """Return the members as `model`; raises InvalidFields with a sentence for each field, without their values."""
    try:
        return model.model_validate(members)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
    raise InvalidFields([_field_error(details) for details in found[:MOST_ERRORS]])


def _field_error(details: ErrorDetails) -> tuple[str, str]:
    name = str(details["loc"][0]) if details["loc"] else "body"
    message = SENTENCES.get(details["type"]) or details["msg"].removeprefix("Value error, ")
    return (name if FIELD_NAME.fullmatch(name) else "(unnamed)"), message
