"""The stores under ENUMERATION=strict, in memory and in Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from actors.domain.mail import MailKind
from service.adapters.postgres_expired import forget
from service.adapters.postgres_shadows import PostgresShadowCodes, PostgresShadows
from tests.contracts.conftest import MemoryStore, PostgresStore, Store
from tests.fakes.accounts import DEFAULTS
from tests.fakes.shadows import FakeShadows

if TYPE_CHECKING:
    from uuid import UUID

    from actors.ports import Registrations
    from service.adapters.postgres import Postgres

SHIFT: Final = """
UPDATE shared_addresses SET noticed_at = noticed_at - make_interval(secs => %(s)s),
    touched_at = touched_at - make_interval(secs => %(s)s),
    codes_sent = ARRAY(SELECT t - make_interval(secs => %(s)s) FROM unnest(codes_sent) AS t ORDER BY t)
"""
SHIFT_FORGETTING: Final = "UPDATE users SET forget_after = forget_after - make_interval(secs => %(s)s)"
KIND: Final = "SELECT kind FROM mails WHERE id = %(id)s"
COUNTED: Final = """
SELECT coalesce(sum(registrations), 0)::int, coalesce(sum(resends), 0)::int, coalesce(sum(mails_accepted), 0)::int,
       coalesce(sum(mails_dead), 0)::int FROM business_counts
"""


class ShadowStore(Store, Protocol):
    """A store, its port for registrations, and what its mails are."""

    @property
    def registrations(self) -> Registrations:
        """The registrations, shadows among them."""
        ...

    async def kind(self, mail_id: UUID) -> MailKind | None:
        """Return what the mail is, or None when it was never owed."""
        ...

    async def post(self) -> None:
        """Let the mail server take everything that is owed."""
        ...


class MemoryShadowStore(MemoryStore):
    """The fakes."""

    def __init__(self) -> None:
        super().__init__()
        self._shadows = FakeShadows(self._clock, self.keys)
        self.accounts = self.codes = self.registrations = self._shadows

    async def kind(self, mail_id: UUID) -> MailKind | None:
        """See ShadowStore."""
        return self._shadows.kinds.get(mail_id)

    async def post(self) -> None:
        """See ShadowStore."""
        self._shadows.post()


class PostgresShadowStore(PostgresStore):
    """The adapters."""

    def __init__(self, postgres: Postgres) -> None:
        super().__init__(postgres)
        self.registrations = PostgresShadows(postgres, DEFAULTS, "test")
        self.codes = PostgresShadowCodes(postgres, DEFAULTS, "test")

    async def wait(self, seconds: float) -> None:
        """Move what is only here into the past too."""
        await super().wait(seconds)
        for statement in (SHIFT, SHIFT_FORGETTING):
            await self._postgres.run(statement, {"s": seconds})

    async def kind(self, mail_id: UUID) -> MailKind | None:
        """See ShadowStore."""
        rows = await self._postgres.run(KIND, {"id": mail_id})
        return MailKind(rows[0][0]) if rows else None

    async def forget(self) -> None:
        """Delete what has had its time."""
        await forget(self._postgres)

    async def post(self) -> None:
        """See ShadowStore."""
        for mail in await self._outbox.claim_due(1000):
            assert await self._outbox.accepted(mail)

    async def counted(self) -> tuple[int, ...]:
        """Return the registrations, resends, accepted and dead mails that were counted."""
        return (await self._postgres.run(COUNTED))[0]
