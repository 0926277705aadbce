"""Delivers one claimed mail: fresh code if need be, under a lease that is renewed, with its outcome written down.

At least once, never in vain: a mail may be sent twice (its server took it, and this process died before that was
written), but both carry the same code. A mail whose claim is lost is somebody else's, and is let go.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, NoReturn, TypeVar, assert_never

import anyio

from actors.domain.mail import Deferred, MailKind, Rejected, Unreached, backoff
from actors.kit.mailbox import MachineError
from actors.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from actors.domain.code import CodeId, Keyring
    from actors.domain.mail import ClaimedMail
    from actors.mail_ports import Outbox, Postman

WrittenT = TypeVar("WrittenT")

RENEW_SECONDS = 5.0  # a third of the lease: two renewals may fail before the claim is lost
SETTLE_SECONDS = 60.0  # how long an outcome waits for a database that is away; later the mail is simply sent again
HASTENED = 4  # for each mail that is taken: growth by leaps, and few vain tries at a server that is half up
LOOK_OUT_SECONDS = 1.0  # between connections that are tried for all mails that wait for one
UNREACHED_KEPT = 1024  # the others come when their wait is over
LONGEST_WAIT_SECONDS = 900.0  # what a provider may ask for: nobody waits for a code much longer


class Outcome(StrEnum):
    """How a delivery ended."""

    ACCEPTED = "accepted"
    DEFERRED = "deferred"
    DEAD = "dead"
    NEEDLESS = "needless"  # redeemed, superseded or given up meanwhile: nobody needs the mail
    LOST = "lost"  # the claim is somebody else's now
    UNSETTLED = "unsettled"  # the database is away: the lease ends and the mail is claimed anew


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of one claimed mail; `error` is set only when the program, not a server, failed."""

    mail: ClaimedMail
    outcome: Outcome
    reason: str | None = None
    error: Exception | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Sent:
    outcome: Outcome
    reason: str = ""
    wait: float = 0.0
    error: Exception | None = None
    unreached: bool = False


class Delivery:
    """Delivers claimed mails, any number at once.

    `chance` gives numbers in [0, 1) that spread the retries, `new_number` random code numbers.
    """

    def __init__(  # noqa: PLR0913 - each is one collaborator
        self,
        outbox: Outbox,
        postman: Postman,
        keyring: Keyring,
        *,
        code_ttl_seconds: float,
        chance: Callable[[], float],
        new_number: Callable[[], UUID],
    ) -> None:
        self._outbox = outbox
        self._postman = postman
        self._keyring = keyring
        self._code_ttl_seconds = code_ttl_seconds
        self._chance = chance
        self._pace = Pace(chance)
        self._new_number = new_number
        self._unreached: dict[UUID, None] = {}  # mails that wait only because no connection could be had

    async def deliver(self, mail: ClaimedMail) -> Delivered:
        """Deliver the mail and write its outcome; never raises but when cancelled, and then writes nothing."""
        try:
            ready = await self._with_code(mail)
            if ready is None:
                return Delivered(mail, Outcome.NEEDLESS)
            mail, code = ready
            sent = await self._send(mail, code)
            return await self._settled(mail, sent)
        except MachineError as error:
            return Delivered(mail, Outcome.UNSETTLED, type(error).__name__)

    async def look_out(self) -> NoReturn:
        """Bring mails forward soon after a server that could not be reached is back; looks until cancelled.

        To look is to connect, for all of them together: it takes no attempt from any.
        """
        while True:
            await anyio.sleep(LOOK_OUT_SECONDS)
            if self._unreached:
                with suppress(Deferred):
                    await self._postman.reach()
                    self._pace.reached()
                    await self._hasten()

    async def _with_code(self, mail: ClaimedMail) -> tuple[ClaimedMail, str | None] | None:
        """Return the mail as it can leave now; None when nobody needs it any more."""
        if mail.code_id is None:
            return mail, None
        if mail.life_left is not None and mail.life_left >= self._code_ttl_seconds:
            try:
                return mail, self._code(mail, mail.code_id)
            except LookupError:
                pass  # the operator has removed the key: a code under it could not be redeemed
        fresh = self._keyring.code_id(self._new_number())
        fresh = fresh if mail.kind is MailKind.CODE else fresh.silenced()
        renewed = await self._outbox.freshen(mail, fresh)
        return None if renewed is None else (renewed, self._code(renewed, fresh))

    def _code(self, mail: ClaimedMail, code_id: CodeId) -> str | None:
        return self._keyring.code(mail.account, code_id) if mail.kind is MailKind.CODE else None

    async def _send(self, mail: ClaimedMail, code: str | None) -> _Sent:
        """Send while the lease is renewed; LOST when it could not be kept."""
        sent = _Sent(Outcome.LOST)
        async with anyio.create_task_group() as group:
            group.start_soon(self._hold, mail, group.cancel_scope)
            sent = await self._attempt(mail, code)
            group.cancel_scope.cancel()
        return sent

    async def _attempt(self, mail: ClaimedMail, code: str | None) -> _Sent:
        try:
            if mail.kind is MailKind.SILENT:
                await self._pace.pretend(mail)
            else:
                await self._pace.keep(self._postman.send(mail, code))
        except Rejected as refusal:
            return _Sent(Outcome.DEAD, refusal.reason)
        except Deferred as delay:
            asked = min(delay.retry_after or 0.0, LONGEST_WAIT_SECONDS)
            wait = max(asked, self._backoff(mail))
            return _Sent(Outcome.DEFERRED, delay.reason, wait, unreached=isinstance(delay, Unreached))
        except Exception as error:  # noqa: BLE001 - one mail that breaks the program must not stop its neighbours
            return _Sent(Outcome.DEFERRED, f"internal {type(error).__name__}", self._backoff(mail), error)
        return _Sent(Outcome.ACCEPTED)

    def _backoff(self, mail: ClaimedMail) -> float:
        return backoff(max(1, mail.attempt), self._chance())

    async def _hold(self, mail: ClaimedMail, scope: anyio.CancelScope) -> None:
        """Renew the lease until cancelled; a database that is away may be back before the lease ends."""
        while True:
            await anyio.sleep(RENEW_SECONDS)
            try:
                held = await self._outbox.extend(mail)
            except MachineError:
                continue
            if not held:
                scope.cancel()
                return

    async def _settled(self, mail: ClaimedMail, sent: _Sent) -> Delivered:
        self._unreached.pop(mail.id, None)
        match sent.outcome:
            case Outcome.ACCEPTED:
                if not await self._written(lambda: self._outbox.accepted(mail)):
                    return Delivered(mail, Outcome.LOST)
                if mail.kind is not MailKind.SILENT:
                    await self._hasten()
            case Outcome.DEFERRED:
                await self._written(lambda: self._outbox.deferred(mail, sent.reason, sent.wait))
                if sent.unreached and len(self._unreached) < UNREACHED_KEPT:
                    self._unreached[mail.id] = None
            case Outcome.DEAD:
                await self._written(lambda: self._outbox.dead(mail, sent.reason))
            case Outcome.LOST | Outcome.NEEDLESS | Outcome.UNSETTLED:
                pass  # whoever has the claim writes what becomes of the mail
            case _:
                assert_never(sent.outcome)
        return Delivered(mail, sent.outcome, sent.reason or None, sent.error)

    async def _hasten(self) -> None:
        """Have some of the mails tried at once that wait for a server which is there again."""
        some = list(islice(self._unreached, HASTENED))
        if some:
            for mail_id in some:
                del self._unreached[mail_id]
            with suppress(MachineError):  # they leave when their wait is over
                await self._outbox.hasten(some)

    async def _written(self, write: Callable[[], Awaitable[WrittenT]]) -> WrittenT:
        """Write the outcome, again while the database is away: a mail sent once should not leave twice."""
        deadline = anyio.current_time() + SETTLE_SECONDS
        while True:
            try:
                return await write()
            except MachineError as error:
                if anyio.current_time() >= deadline:
                    raise
                await anyio.sleep(max(0.1, error.retry_after))
