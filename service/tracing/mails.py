"""Traces of mails: each delivery is a consumer span of the trace whose request owed the mail, retries further ones."""

from __future__ import annotations

import re
from time import time_ns
from typing import TYPE_CHECKING

from opentelemetry.trace import SpanKind, get_current_span

from actors.delivery import Outcome
from actors.domain.mail import Deferred, Rejected
from service.tracing.spans import OUTCOME, failed, parent_of, span

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from uuid import UUID

    from opentelemetry.trace import Span, Tracer

    from actors.delivery import Delivered
    from actors.domain.code import CodeId
    from actors.domain.mail import ClaimedMail
    from actors.mail_ports import Outbox, Postman
    from actors.mail_room import Deliver

REPLY = re.compile(r"(?:HTTP )?([1-5]\d\d)\b")  # at the beginning of a reason, as the postmen write it
REPLY_CODE, REASON = "vestibule.mail.reply_code", "vestibule.mail.reason"
ACCEPTED = 250  # a mail is accepted by this reply to its content alone (RFC 5321, 4.2.2)
FAILED = frozenset({Outcome.DEFERRED, Outcome.DEAD, Outcome.UNSETTLED})


class TracedOutbox:
    """The outbox, whose answers become spans of the delivery that asks; claims are kept for the delivery to show."""

    def __init__(self, outbox: Outbox, tracer: Tracer, claims: Claims) -> None:
        self._outbox = outbox
        self._tracer = tracer
        self._claims = claims

    async def claim(self, mail_ids: Sequence[UUID]) -> list[ClaimedMail]:
        """Claim what was rung for."""
        return await self._claims.noted(self._outbox.claim(mail_ids))

    async def claim_due(self, limit: int) -> list[ClaimedMail]:
        """Claim what is due."""
        return await self._claims.noted(self._outbox.claim_due(limit))

    async def freshen(self, mail: ClaimedMail, code_id: CodeId) -> ClaimedMail | None:
        """Replace a code."""
        with span(self._tracer, "fresh code"):
            return await self._outbox.freshen(mail, code_id)

    async def extend(self, mail: ClaimedMail) -> bool:
        """Renew the lease."""
        with span(self._tracer, "renew lease"):
            return await self._outbox.extend(mail)

    async def accepted(self, mail: ClaimedMail) -> bool:
        """Write that it was accepted."""
        with span(self._tracer, "write accepted"):
            return await self._outbox.accepted(mail)

    async def deferred(self, mail: ClaimedMail, reason: str, seconds: float) -> None:
        """Queue it again."""
        with span(self._tracer, "write deferred", attributes={"vestibule.mail.retry_seconds": round(seconds, 3)}):
            await self._outbox.deferred(mail, reason, seconds)

    async def hasten(self, mail_ids: Sequence[UUID]) -> None:
        """Make due what waits."""
        with span(self._tracer, "hasten", attributes={"vestibule.mail.hastened": len(mail_ids)}):
            await self._outbox.hasten(mail_ids)

    async def dead(self, mail: ClaimedMail, reason: str) -> None:
        """Bury it."""
        with span(self._tracer, "write dead"):
            await self._outbox.dead(mail, reason)


class Claims:
    """When each mail in hand was claimed, until its delivery begins; the room delivers all that it claims."""

    def __init__(self) -> None:
        self._claimed: dict[tuple[UUID, int], tuple[int, int, int]] = {}

    async def noted(self, claiming: Awaitable[list[ClaimedMail]]) -> list[ClaimedMail]:
        """Return what was claimed."""
        begun = time_ns()
        mails = await claiming
        ended = time_ns()
        self._claimed.update({(mail.id, mail.fence): (begun, ended, len(mails)) for mail in mails})
        return mails

    def take(self, mail: ClaimedMail) -> tuple[int, int, int]:
        """Return when the claim of this mail began and ended, and of how many mails it was; once."""
        now = time_ns()
        return self._claimed.pop((mail.id, mail.fence), (now, now, 1))


class TracedPostman:
    """The postman, each send a client span with the reply code."""

    def __init__(self, postman: Postman, tracer: Tracer, way: str) -> None:
        self._postman = postman
        self._tracer = tracer
        self._protocol = "http" if way.startswith("http") else "smtp"

    async def reach(self) -> None:
        """Reach its server, which is part of no mail's trace."""
        await self._postman.reach()

    async def send(self, mail: ClaimedMail, code: str | None) -> None:
        """Send it."""
        attributes = {"network.protocol.name": self._protocol}
        delivery = get_current_span()
        with span(self._tracer, f"{self._protocol} send", kind=SpanKind.CLIENT, attributes=attributes) as one:
            try:
                await self._postman.send(mail, code)
            except (Deferred, Rejected) as error:
                _explain(one, error.reason)
                failed(one, type(error).__name__)
                raise
            if self._protocol == "smtp":
                one.set_attribute(REPLY_CODE, ACCEPTED)
                delivery.set_attribute(REPLY_CODE, ACCEPTED)


class TracedDelivery:
    """One delivery, from the claim to its outcome."""

    def __init__(self, deliver: Deliver, tracer: Tracer, claims: Claims) -> None:
        self._deliver = deliver
        self._tracer = tracer
        self._claims = claims

    async def __call__(self, mail: ClaimedMail) -> Delivered:
        """Deliver the mail."""
        begun, ended, together = self._claims.take(mail)
        attributes = {
            "messaging.system": "vestibule",
            "messaging.destination.name": "mails",
            "messaging.operation.name": "process",
            "messaging.message.id": str(mail.id),
            "vestibule.mail.kind": mail.kind.value,
            "vestibule.mail.attempt": mail.attempt,
        }
        with span(
            self._tracer,
            "process mails",
            kind=SpanKind.CONSUMER,
            context=parent_of(mail.traceparent),
            attributes=attributes,
            start_time=begun,
        ) as one:
            claim = self._tracer.start_span("claim", start_time=begun, attributes={"vestibule.batch.size": together})
            claim.end(ended)
            delivered = await self._deliver(mail)
            one.set_attribute(OUTCOME, delivered.outcome.value)
            if delivered.reason:
                _explain(one, delivered.reason)
            if delivered.outcome in FAILED:
                failed(one, delivered.outcome.value)
            return delivered


def _explain(one: Span, reason: str) -> None:
    """Show a reason, which the postmen write without addresses, and the reply code in it."""
    one.set_attribute(REASON, reason)
    code = REPLY.match(reason)
    if code:
        one.set_attribute(REPLY_CODE, int(code[1]))
