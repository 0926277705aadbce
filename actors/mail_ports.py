"""What the mail needs from outside, as Protocols: the outbox, the way to the mail server, and the bell.

The outbox raises as the stores of actors.ports do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from actors.domain.code import CodeId
    from actors.domain.mail import ClaimedMail


class Wakeups(Protocol):
    """Rings the mail workers; losing a ring only costs the second until their next look."""

    async def ring(self, mail_ids: Sequence[UUID]) -> None:
        """Tell the workers about owed mails; never raises."""
        ...


class Outbox(Protocol):
    """The owed mails, as the mail workers see them."""

    async def claim(self, mail_ids: Sequence[UUID]) -> list[ClaimedMail]:
        """Claim those of the named mails that are due and in nobody's hands."""
        ...

    async def claim_due(self, limit: int) -> list[ClaimedMail]:
        """Claim whatever is due, the longest waiting first."""
        ...

    async def freshen(self, mail: ClaimedMail, code_id: CodeId) -> ClaimedMail | None:
        """Replace a code that has too little life left; None when the mail need not be sent any more."""
        ...

    async def extend(self, mail: ClaimedMail) -> bool:
        """Renew the lease; False when the claim is lost."""
        ...

    async def accepted(self, mail: ClaimedMail) -> bool:
        """Write that the mail server took it: the code's minute starts now. False when the claim was lost."""
        ...

    async def deferred(self, mail: ClaimedMail, reason: str, seconds: float) -> None:
        """Queue it again for `seconds` from now, or bury it when nobody waits any more."""
        ...

    async def hasten(self, mail_ids: Sequence[UUID]) -> None:
        """Make those of the named mails due that wait for their next attempt; what it counts stays counted."""
        ...

    async def dead(self, mail: ClaimedMail, reason: str) -> None:
        """Bury it with its reason."""
        ...


class Postman(Protocol):
    """Sends mails to one server."""

    async def reach(self) -> None:
        """Return once a connection could be had, without sending anything; raises Deferred."""
        ...

    async def send(self, mail: ClaimedMail, code: str | None) -> None:
        """Return once the server has accepted the mail; raises Deferred or Rejected."""
        ...
