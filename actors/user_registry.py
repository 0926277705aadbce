"""UserRegistry: who has an account, and the one place where a registration is won or lost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from actors.domain.errors import CodesExhausted, EmailTaken, Refusal
from actors.domain.mail import MailKind
from actors.domain.user import LOOKS, Account
from actors.kit.actor import Actor, only
from actors.kit.mailbox import Ask, NotAccepted
from actors.ports import Issue, Register

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from actors.domain.user import CodePolicy
    from actors.kit.mailbox import Envelope
    from actors.ports import Accounts, Answer, KeyUse, Registered


@dataclass(frozen=True, slots=True)
class Looked:
    """What is known of an address, and of an idempotency key."""

    account: Account | None
    answer: Answer | None


@dataclass(frozen=True, slots=True)
class Look(Ask[Looked]):
    """Look an address up by its key, and an idempotency key as each of our keys may have stored it."""

    email_key: str = field(repr=False)
    keys: tuple[KeyUse, ...] = ()


@dataclass(frozen=True, slots=True)
class FindRegistration(Ask[Account | None]):
    """Look up the account that a registration made; None when there is none or another has replaced it."""

    account: UUID
    registration: int


UserMessage = Look | FindRegistration | Register


class UserRegistry(Actor[UserMessage]):
    """Answers look-ups and registrations, each kind of a batch with one statement."""

    name = "UserRegistry"
    refusals: ClassVar[tuple[type[Exception], ...]] = (Refusal,)

    def __init__(self, accounts: Accounts, policy: CodePolicy, *, strict: bool = False) -> None:
        self._accounts = accounts
        self._policy = policy
        self._strict = strict

    async def handle(self, envelopes: Sequence[Envelope[UserMessage]]) -> None:
        """Register first: a look-up in the same batch then sees it."""
        if registrations := only(Register, envelopes):
            with self.share_failure(registrations):
                await self._register(registrations)
        if looks := only(Look, envelopes):
            with self.share_failure(looks):
                await self._look(looks)
        if finds := only(FindRegistration, envelopes):
            found = await self._accounts.find_by_id([find.message.account for find in finds])
            for find, account in zip(finds, found, strict=True):
                current = account is not None and account.registration == find.message.registration
                find.answer(account if current else None)

    async def _look(self, looks: list[Envelope[Look]]) -> None:
        found = await self._accounts.find([look.message.email_key for look in looks])
        digests = {key.digest for look in looks for key in look.message.keys}
        answers = await self._accounts.find_answers(digests) if digests else {}
        for look, account in zip(looks, found, strict=True):
            bound = [answers[key.digest] for key in look.message.keys if key.digest in answers]
            look.answer(Looked(account, bound[0] if bound else None))

    async def _register(self, asked: list[Envelope[Register]]) -> None:
        """Add the first registration of each new address; the others find an account there."""
        first = {envelope.message.email.key: envelope for envelope in reversed(asked)}.values()
        added = await self._accounts.add([envelope.message for envelope in first])
        for envelope, registered in zip(first, added, strict=True):
            if registered is not None:
                envelope.answer(registered)
        lost = [envelope for envelope in asked if not envelope.settled]
        found = await self._accounts.find([envelope.message.email.key for envelope in lost]) if lost else []
        for envelope, account in zip(lost, found, strict=True):
            with self.share_failure([envelope]):
                envelope.answer(await self._take_over(envelope.message, account))

    async def _take_over(self, new: Register, account: Account | None) -> Registered | None:
        """Replace an account that nobody holds; look again where it has changed in between."""
        for _ in range(LOOKS):
            if account is None:  # an operator has deleted it since
                break
            budget_wait = self._policy.budget_wait(account.code_ages())
            if account.is_held(self._policy) or budget_wait:
                if not self._strict:
                    raise EmailTaken if account.is_held(self._policy) else CodesExhausted(budget_wait)
                await self._note_taken(new, account)
                return None
            [registered] = await self._accounts.issue([Issue(account.id, account.version, new.mail, take_over=new)])
            if registered is not None:
                return registered
            [account] = await self._accounts.find([new.email.key])
        raise NotAccepted

    async def _note_taken(self, new: Register, account: Account) -> None:
        """Bind the idempotency key, and tell the owner of an active address once a day."""
        if new.key is not None:
            await self._accounts.bind_taken([new.key])
        if account.is_activated and account.noticed_at is None:
            notice = replace(new.mail, kind=MailKind.NOTICE)
            await self._accounts.issue([Issue(account.id, account.version, notice)])
