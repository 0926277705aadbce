"""What makes a password good enough, and the form in which it is hashed (NIST SP 800-63B: length and a list)."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.domain.errors import WeakPassword

if TYPE_CHECKING:
    from collections.abc import Container

    from actors.domain.email_address import EmailAddress

LEAST_BYTES = 8
MOST_BYTES = 72  # bcrypt reads no further: a longer one would be cut silently


@dataclass(frozen=True, slots=True)
class Password:
    """A password in NFC, as the UTF-8 bytes that are hashed; never shown."""

    secret: bytes = field(repr=False)

    @classmethod
    def typed(cls, text: str) -> Password:
        """Take what a person typed, by the same normalisation for a new password and for a check."""
        return cls(unicodedata.normalize("NFC", text).encode())

    @property
    def hashable(self) -> bool:
        """Whether bcrypt can take it: no NUL, which it would stop at, and at most 72 bytes."""
        return len(self.secret) <= MOST_BYTES and b"\0" not in self.secret

    def check_strength(self, address: EmailAddress, common: Container[str]) -> None:
        """Raise WeakPassword with every reason that applies; `common` holds well-known passwords in lower case."""
        text = self.secret.decode().casefold()
        typed = unicodedata.normalize("NFC", address.typed).casefold()
        reasons = {
            "too_short": len(self.secret) < LEAST_BYTES,
            "too_long": len(self.secret) > MOST_BYTES,
            "common": text in common,
            "contains_address": text in {address.key, address.local_part, typed},
        }
        if any(reasons.values()):
            raise WeakPassword(tuple(reason for reason, applies in reasons.items() if applies))
