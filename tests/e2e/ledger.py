"""What the tests told the service and must never find again in its logs or its stores."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BOUNDARY = rb"(?<![0-9A-Za-z.])%s(?![0-9A-Za-z])"  # six digits may be a part of any time or number


@dataclass
class Ledger:
    """The secrets of one instance; threads of a race write into it at once."""

    passwords: set[str] = field(default_factory=set, repr=False)
    authorizations: set[str] = field(default_factory=set, repr=False)
    codes: set[str] = field(default_factory=set, repr=False)
    addresses: set[str] = field(default_factory=set, repr=False)

    def secrets_in(self, where: str, content: bytes) -> Iterator[str]:
        """Yield a sentence for each kind of secret that is found, without the secret."""
        for kind, secrets in (("password", self.passwords), ("Authorization", self.authorizations)):
            if any(secret.encode() in content for secret in secrets):
                yield f"{where} holds a {kind}"
        if any(b64encode(password.encode()) in content for password in self.passwords):
            yield f"{where} holds a password in base64"
        if self.codes and re.search(BOUNDARY % f"({'|'.join(self.codes)})".encode(), content):
            yield f"{where} holds a code"

    def addresses_in(self, where: str, content: bytes) -> Iterator[str]:
        """Yield a sentence if an address is found, in any case."""
        lowered = content.lower()
        for address in sorted(self.addresses):
            at = lowered.find(address.lower().encode())
            if at >= 0:
                line = lowered[lowered.rfind(b"\n", 0, at) + 1 : at][-160:].decode(errors="replace")
                yield f"{where} holds an address, after: {line}"
