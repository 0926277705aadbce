"""Codes, tokens and digests, all derived from the operator's keys and stored nowhere.

Each purpose has a sub-key of its own (HKDF-SHA-256, RFC 5869), so that a status token, which its owner sees,
says nothing about a code, which its owner must prove to have read.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING
from uuid import UUID

from actors.domain.errors import InvalidCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAC_BYTES = 16  # 128 bits: nobody guesses a status address
SALT_BYTES = 16  # what bcrypt takes
SILENT = "~"  # names no key: an operator's key ids have letters, digits, - and _ alone
# What people and mail clients put between digits: blanks of any width, and hyphens.
SPACERS = " \t\r\n-\u00a0\u2007\u2009\u2010\u2011\u202f"
STRIPPED = str.maketrans("", "", SPACERS)


class Purpose(StrEnum):
    """What a sub-key may be used for; the word is the HKDF label."""

    CODE = "vestibule code v1"
    STATUS = "vestibule status v1"
    IDEMPOTENCY = "vestibule idempotency v1"
    SUBJECT = "vestibule limit subject v1"
    SALT = "vestibule password salt v1"


def hkdf_sha256(key: bytes, info: bytes, *, salt: bytes = b"", length: int = 32) -> bytes:
    """Return `length` bytes derived from `key` for `info` (RFC 5869, extract and expand)."""
    extracted = hmac.digest(salt or bytes(32), key, "sha256")
    block, output = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(extracted, block + info + bytes([counter]), "sha256")
        output += block
    return output[:length]


@dataclass(frozen=True, slots=True)
class CodeId:
    """Names one code: the key it is derived under and a random number; text form `kid.32 hex digits`."""

    kid: str
    number: UUID

    def __str__(self) -> str:
        return f"{self.kid}.{self.number.hex}"

    @classmethod
    def parse(cls, text: str) -> CodeId:
        """Read the text form; raises ValueError for anything else."""
        kid, _, number = text.rpartition(".")
        code_id = cls(kid, UUID(hex=number))
        if not kid or str(code_id) != text:  # UUID reads braces, hyphens and capitals too
            msg = "not the text of a code id"
            raise ValueError(msg)
        return code_id

    def silenced(self) -> CodeId:
        """Return the id of a code that exists for nobody: nothing that is typed ever matches it."""
        return CodeId(SILENT, self.number)


class Keyring:
    """The operator's keys by id; the first signs, all of them verify.

    Nothing of it is shown in a repr. Asking for a code whose key was removed raises KeyError.
    """

    def __init__(self, keys: Mapping[str, bytes], digits: int = 6) -> None:
        if not keys:
            msg = "a keyring needs at least one key"
            raise ValueError(msg)
        self.digits = digits
        self._keys = dict(keys)
        self._signing = next(iter(self._keys))
        self._subkey = lru_cache(maxsize=None)(self._derive)

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self._keys)})"

    def _derive(self, kid: str, purpose: Purpose) -> bytes:
        return hkdf_sha256(self._keys[kid], purpose.encode())

    def code_id(self, number: UUID) -> CodeId:
        """Name a new code under the signing key; `number` must be random."""
        return CodeId(self._signing, number)

    def code(self, account: UUID, code_id: CodeId) -> str:
        """Return the code's digits: the whole HMAC as an integer mod 10^n, so that every code is as likely."""
        mac = hmac.digest(self._subkey(code_id.kid, Purpose.CODE), account.bytes + code_id.number.bytes, "sha256")
        return str(int.from_bytes(mac) % 10**self.digits).zfill(self.digits)

    def matches(self, account: UUID, code_id: CodeId, typed: str) -> bool:
        """Compare in constant time; a silent code and one whose key is gone match nothing, after the same work."""
        known = code_id.kid in self._keys
        code = self.code(account, code_id if known else self.code_id(code_id.number))
        return hmac.compare_digest(code.encode(), typed.encode(errors="replace")) and known

    def any_matches(self, account: UUID, code_ids: Iterable[CodeId], typed: str) -> bool:
        """Whether one of the codes was typed; all of them are compared."""
        matches = [self.matches(account, code_id, typed) for code_id in code_ids]
        return any(matches)

    def status_token(self, registration: UUID) -> str:
        """Return the unguessable end of a registration's status address."""
        return urlsafe_b64encode(registration.bytes + self._mac(self._signing, registration)).decode().rstrip("=")

    def registration(self, token: str) -> UUID | None:
        """Return whose status address ends in `token`, or None for a forged one."""
        try:
            raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except ValueError:
            return None
        if len(raw) != 16 + MAC_BYTES:
            return None
        registration = UUID(bytes=raw[:16])
        macs = [self._mac(kid, registration) for kid in self._keys]
        matches = [hmac.compare_digest(mac, raw[16:]) for mac in macs]
        return registration if any(matches) and self._canonical(token, raw) else None

    @staticmethod
    def _canonical(token: str, raw: bytes) -> bool:
        return urlsafe_b64encode(raw).decode().rstrip("=") == token

    def _mac(self, kid: str, registration: UUID) -> bytes:
        return hmac.digest(self._subkey(kid, Purpose.STATUS), registration.bytes, "sha256")[:MAC_BYTES]

    def subject(self, *parts: str) -> str:
        """Return a keyed digest that stands for an e-mail address in limits, caches and keys of Redis.

        The same on every worker and machine; changes when the oldest key is dropped.
        """
        kid = next(reversed(self._keys))  # the oldest: adding a key to sign with must not start all windows over
        digest = hmac.digest(self._subkey(kid, Purpose.SUBJECT), _unambiguous(parts), "sha256")
        return urlsafe_b64encode(digest[:18]).decode()

    def salt(self, email_key: str) -> bytes:
        """Return the bcrypt salt of an address that has none yet: whoever registers it hashes alike.

        As stable as `subject`. A salt need not be secret; this one is no more than different for every address.
        """
        kid = next(reversed(self._keys))
        return hmac.digest(self._subkey(kid, Purpose.SALT), email_key.encode(), "sha256")[:SALT_BYTES]

    def idempotency_digest(self, *parts: str) -> bytes:
        """Return the 32 bytes that stand for an idempotency key, or for a body, in Postgres."""
        kid = next(reversed(self._keys))
        return hmac.digest(self._subkey(kid, Purpose.IDEMPOTENCY), _unambiguous(parts), "sha256")


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
