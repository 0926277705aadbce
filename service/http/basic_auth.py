"""Reads `Authorization: Basic` (RFC 7617), strictly: what is broken is as wrong as a wrong password."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING

from actors.domain.errors import InvalidCredentials
from actors.forms import Credentials

if TYPE_CHECKING:
    from collections.abc import Sequence

BASIC = re.compile(r"[Bb][Aa][Ss][Ii][Cc] +([A-Za-z0-9+/]+={0,2})")
CONTROLS = r"\u0000-\u001f\u007f-\u009f"  # C0, DEL and C1, as a class of regular expressions has them
CONTROL = re.compile(f"[{CONTROLS}]")
CHALLENGE = 'Basic realm="vestibule", charset="UTF-8"'


def controls(text: str) -> bool:
    """Whether the text holds a control character (C0, DEL or C1)."""
    return CONTROL.search(text) is not None


def credentials(values: Sequence[str]) -> Credentials:
    """Return what the request's Authorization headers carry.

    Raises InvalidCredentials unless there is exactly one, of the Basic scheme, in canonical base64, of UTF-8 with a
    colon and without control characters (RFC 7617, section 2); the first colon ends the address.
    """
    match = BASIC.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        raise InvalidCredentials
    email, colon, password = _decoded(match[1]).partition(":")
    if not colon or controls(email) or controls(password):
        raise InvalidCredentials
    return Credentials(email, password)


def _decoded(encoded: str) -> str:
    try:
        raw = b64decode(encoded, validate=True)
        text = raw.decode()
    except ValueError:
        raise InvalidCredentials from None
    if b64encode(raw).decode() != encoded:  # two spellings of one header are one too many
        raise InvalidCredentials
    return text
