"""An address as typed, and the key under which it is the same address."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EmailAddress:
    """A valid address: `typed` is what mail goes to, `key` is what makes it unique.

    The key is the casefolded local part, `@`, and the domain in its ASCII form (IDNA 2008). Dots and plus tags stay:
    only the owner's mail server knows what they mean.
    """

    typed: str = field(repr=False)
    key: str = field(repr=False)

    @property
    def local_part(self) -> str:
        """The key's part before the last `@`."""
        return self.key.rpartition("@")[0]
