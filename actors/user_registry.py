"""UserRegistry: who has an account, and the one place where a registration is won or lost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, assert_never

from actors.domain.errors import CodesExhausted, EmailTaken, Refusal
from actors.domain.mail import MailKind
from actors.domain.user import Account
from actors.kit.actor import Actor, share_failure
from actors.kit.mailbox import Ask, NotAccepted
from actors.ports import Answer, NewIssue, Registered, TakeOver

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from actors.domain.user import CodePolicy
    from actors.kit.mailbox import Envelope
    from actors.ports import Accounts, NewAccount

LOOKS = 8  # an account that changes under so many looks in a row is being played with


@dataclass(frozen=True, slots=True)
class Looked:
    """What is known of an address, and of an idempotency key."""

    account: Account | None
    answer: Answer | None


@dataclass(frozen=True, slots=True)
class Look(Ask[Looked]):
    """Look an address up by its key, and an idempotency key by its possible digests."""

    email_key: str = field(repr=False)
    digests: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class FindRegistration(Ask[Account | None]):
    """Look up the account that a registration made; None when there is none or another has replaced it."""

    account: UUID
    registration: int


@dataclass(frozen=True, slots=True)
class Register(Ask[Registered | None]):
    """Add a pending account, its first code and the mail that will carry it, or none of them.

    Raises EmailTaken when the address is held: active, or pending under a live code or a mail still owed. Raises
    CodesExhausted when the address has had its codes. In strict mode the answer is None instead, the idempotency key is
    bound, and the owner of an active address gets a notice.
    """

    account: NewAccount


UserMessage = Look | FindRegistration | Register
Asked = tuple["Envelope[UserMessage]", "NewAccount"]


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
        looks: list[tuple[Envelope[UserMessage], Look]] = []
        finds: list[tuple[Envelope[UserMessage], FindRegistration]] = []
        registrations: list[Asked] = []
        for envelope in envelopes:
            match message := envelope.message:
                case Look():
                    looks.append((envelope, message))
                case FindRegistration():
                    finds.append((envelope, message))
                case Register(account):
                    registrations.append((envelope, account))
                case _:
                    assert_never(message)
        if registrations:
            with share_failure([envelope for envelope, _ in registrations]):
                await self._register(registrations)
        if looks:
            with share_failure([envelope for envelope, _ in looks]):
                await self._look(looks)
        if finds:
            found = await self._accounts.find_by_id([find.account for _, find in finds])
            for (envelope, find), owner in zip(finds, found, strict=True):
                current = owner is not None and owner.registration == find.registration
                envelope.answer(owner if current else None)

    async def _look(self, looks: list[tuple[Envelope[UserMessage], Look]]) -> None:
        found = await self._accounts.find([look.email_key for _, look in looks])
        digests = {digest for _, look in looks for digest in look.digests}
        answers = await self._accounts.find_answers(digests) if digests else {}
        for (envelope, look), account in zip(looks, found, strict=True):
            answer = next((answers[digest] for digest in look.digests if digest in answers), None)
            envelope.answer(Looked(account, answer))

    async def _register(self, asked: list[Asked]) -> None:
        """Add the first registration of each address; the others of the batch come too late."""
        first: dict[str, Asked] = {}
        for envelope, account in asked:
            first.setdefault(account.email.key, (envelope, account))
        added = await self._accounts.add([account for _, account in first.values()])
        later = [pair for pair in asked if first[pair[1].email.key][0] is not pair[0]]
        for (envelope, _), registered in zip(first.values(), added, strict=True):
            if registered is not None:
                envelope.answer(registered)
        lost = [pair for pair in first.values() if not pair[0].settled]
        if lost:
            await self._take_over(lost)
        for envelope, account in later:
            await self._refuse(envelope, account, EmailTaken())

    async def _take_over(self, asked: list[Asked]) -> None:
        """Replace accounts that nobody holds; look again where one has changed in between."""
        for _ in range(LOOKS):
            issues = await self._vacant(asked)
            outcomes = await self._accounts.issue([issue for _, issue in issues]) if issues else []
            asked = []
            for (pair, _), registered in zip(issues, outcomes, strict=True):
                if registered is not None:
                    pair[0].answer(registered)
                else:
                    asked.append(pair)
            if not asked:
                return
        for envelope, _ in asked:
            envelope.refuse(NotAccepted())

    async def _vacant(self, asked: list[Asked]) -> list[tuple[Asked, NewIssue]]:
        """Return what takes over each address that nobody holds; refuse the others."""
        found = await self._accounts.find([new.email.key for _, new in asked])
        issues: list[tuple[Asked, NewIssue]] = []
        for (envelope, new), account in zip(asked, found, strict=True):
            if account is None:  # an operator has deleted it since
                envelope.refuse(NotAccepted())
            elif account.is_held(self._policy):
                await self._refuse(envelope, new, EmailTaken(), account)
            elif wait := account.budget_wait(self._policy):
                await self._refuse(envelope, new, CodesExhausted(wait))
            else:
                take_over = TakeOver(new.password_hash, new.email.typed, new.locale, new.key)
                issues.append(((envelope, new), NewIssue(account.id, account.version, new.mail, take_over)))
        return issues

    async def _refuse(
        self, envelope: Envelope[UserMessage], new: NewAccount, refusal: Refusal, account: Account | None = None
    ) -> None:
        """Refuse openly, or in strict mode answer None and tell the owner of an active address, once a day."""
        if not self._strict:
            envelope.refuse(refusal)
            return
        if new.key is not None:
            await self._accounts.bind_taken([new.key])
        if account is not None and account.activated_at is not None and account.noticed_at is None:
            notice = NewIssue(account.id, account.version, replace(new.mail, kind=MailKind.NOTICE))
            await self._accounts.issue([notice])
        envelope.answer(None)
