"""Codes, tokens and digests, all derived from the operator's keys and stored nowhere.

Each purpose has a sub-key of its own (HKDF-SHA-256, RFC 5869), so that a status token, which its owner sees,
says nothing about a code, which its owner must prove to have read.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING
from uuid import UUID

from actors.domain.errors import InvalidCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAC_BYTES = 16  # 128 bits: nobody guesses a status address
REGISTRATION_BYTES = 4
# What people and mail clients put between digits: blanks of any width, and hyphens.
SPACERS = " \t\r\n-\u00a0\u2007\u2009\u2010\u2011\u202f"
STRIPPED = str.maketrans("", "", SPACERS)


class Purpose(StrEnum):
    """What a sub-key may be used for; the word is the HKDF label."""

    CODE = "vestibule code v1"
    STATUS = "vestibule status v1"
    IDEMPOTENCY = "vestibule idempotency v1"
    SUBJECT = "vestibule limit subject v1"


def hkdf_sha256(key: bytes, info: bytes) -> bytes:
    """Return 32 bytes derived from `key` for `info` (RFC 5869, without salt: extract, and one block of expand)."""
    return hmac.digest(hmac.digest(bytes(32), key, "sha256"), info + b"\x01", "sha256")


class Keyring:
    """The operator's keys by id; the first signs, all of them verify.

    A repr shows no key.
    """

    def __init__(self, keys: Mapping[str, bytes], digits: int = 6) -> None:
        if not keys:
            msg = "a keyring needs at least one key"
            raise ValueError(msg)
        self.digits = digits
        self._keys = dict(keys)
        self.signing = next(iter(self._keys))
        self._subkey = lru_cache(maxsize=None)(self._derive)

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self._keys)})"

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._keys

    def _derive(self, key_id: str, purpose: Purpose) -> bytes:
        return hkdf_sha256(self._keys[key_id], purpose.encode())

    def code(self, account: UUID, mail: UUID, key_id: str) -> str:
        """Return the digits of the code that a mail carries.

        The whole HMAC is taken as an integer mod 10^n, so every code is as likely. Raises KeyError when the operator
        has removed the key.
        """
        mac = hmac.digest(self._subkey(key_id, Purpose.CODE), account.bytes + mail.bytes, "sha256")
        return str(int.from_bytes(mac) % 10**self.digits).zfill(self.digits)

    def matches(self, account: UUID, mail: UUID, key_id: str, typed: str) -> bool:
        """Compare in constant time; a code whose key was removed matches nothing, after the same work."""
        known = key_id in self._keys
        code = self.code(account, mail, key_id if known else self.signing)
        return hmac.compare_digest(code.encode(), typed.encode(errors="replace")) and known

    def status_token(self, account: UUID, registration: int) -> str:
        """Return the unguessable end of a registration's status address."""
        named = account.bytes + registration.to_bytes(REGISTRATION_BYTES)
        return _text(named + self._mac(self.signing, named))

    def read_status_token(self, token: str) -> tuple[UUID, int] | None:
        """Return the account id and the registration that a status token names, or None for a forged one."""
        try:
            raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except ValueError:
            return None
        named, mac = raw[:-MAC_BYTES], raw[-MAC_BYTES:]
        if len(named) != 16 + REGISTRATION_BYTES or _text(raw) != token:
            return None
        matches = [hmac.compare_digest(self._mac(key_id, named), mac) for key_id in self._keys]
        return (UUID(bytes=named[:16]), int.from_bytes(named[16:])) if any(matches) else None

    def _mac(self, key_id: str, named: bytes) -> bytes:
        return hmac.digest(self._subkey(key_id, Purpose.STATUS), named, "sha256")[:MAC_BYTES]

    def subject(self, *parts: str) -> str:
        """Return a keyed digest that stands for an e-mail address in limits, caches and keys of Redis.

        The same on every worker and machine; changes when the oldest key is removed.
        """
        key_id = next(reversed(self._keys))  # the oldest: adding a key to sign with must not start all windows over
        return _text(hmac.digest(self._subkey(key_id, Purpose.SUBJECT), _unambiguous(parts), "sha256")[:18])

    def idempotency_digests(self, *parts: str) -> list[bytes]:
        """Return the 32 bytes that stand for an idempotency key, or for a body, under each key, the signing one first.

        A binding made before a rotation of the keys is found under the key that signed then.
        """
        message = _unambiguous(parts)
        return [hmac.digest(self._subkey(key_id, Purpose.IDEMPOTENCY), message, "sha256") for key_id in self._keys]


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def _unambiguous(parts: Iterable[str]) -> bytes:
    """Return bytes that no other parts have: ("a", "bc") is not ("ab", "c")."""
    return b"".join(sha256(part.encode()).digest() for part in parts)


def typed_code(text: str, digits: int) -> str:
    """Strip blanks and hyphens from what a person typed or pasted.

    Raises InvalidCode for anything but `digits` ASCII digits; that costs no attempt.
    """
    code = text.translate(STRIPPED)
    if len(code) != digits or not (code.isascii() and code.isdigit()):
        raise InvalidCode(digits)
    return code
