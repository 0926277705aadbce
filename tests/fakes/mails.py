"""A mail as a worker has claimed it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from actors.domain.mail import ClaimedMail, MailKind

CLAIMED = ClaimedMail(
    id=UUID(int=1),
    fence=1,
    tries=1,
    kind=MailKind.CODE,
    account=UUID(int=2),
    key_id="k1",
    recipient="ada@example.com",
    locale="en",
    life_left=900.0,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


def claimed(**values: Any) -> ClaimedMail:  # noqa: ANN401 - of the mail's fields
    """Return the mail with these values."""
    return replace(CLAIMED, **values)
