"""Accounts, codes and the mails' fates in memory, on a clock that the test holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from actors.domain.errors import CodesExhausted, EmailTaken, RequestInProgress
from actors.domain.user import Account, Code, CodeMail, State
from actors.domain.windows import Rule
from actors.ports import Missed, Redeemed, Registered, Resent
from service.adapters.postgres_codes import CodePolicy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from actors.domain.code import CodeId
    from actors.domain.errors import Refusal
    from actors.ports import NewAccount, NewCode, Redemption
    from tests.fakes.clock import FakeClock
    from tests.fakes.idempotency import FakeIdempotencyKeys

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = 86400
REMEMBERED = 16  # superseded codes
VACANT = {State.EXPIRED, State.EXHAUSTED, State.UNDELIVERABLE}
DEFAULTS = CodePolicy(
    max_age=900, ttl=60, attempts=5, budget=(Rule("codes", 5, 3600), Rule("codes", 10, DAY)), cooldown=30
)


@dataclass(slots=True)
class Row:
    """One account with what only the store needs to know."""

    account: Account
    issued: list[datetime]
    activated_by: UUID | None = None


class FakeAccounts:
    """The Accounts and the Codes port for one process, and what the outbox writes about a code's mail.

    `away`, when set, is raised by every call of the ports.
    """

    def __init__(self, clock: FakeClock, keys: FakeIdempotencyKeys, policy: CodePolicy = DEFAULTS) -> None:
        self._clock = clock
        self._keys = keys
        self._policy = policy
        self._rows: dict[str, Row] = {}
        self.mails: dict[UUID, CodeId] = {}
        self.away: Exception | None = None

    async def find(self, email_keys: Sequence[str]) -> list[Account | None]:
        """Return the account of each address, or None."""
        self._present()
        return [self._read(self._rows.get(key)) for key in email_keys]

    async def find_registrations(self, registrations: Sequence[UUID]) -> list[Account | None]:
        """Return the account that each registration made, unless another registration has replaced it."""
        self._present()
        rows = {row.account.registration: row for row in self._rows.values()}
        return [self._read(rows.get(registration)) for registration in registrations]

    async def register(self, accounts: Sequence[NewAccount]) -> list[Registered | Refusal]:
        """Add each account or replace a pending one whose code is dead."""
        self._present()
        return [self._register(account) for account in accounts]

    def _register(self, new: NewAccount) -> Registered | Refusal:
        row = self._rows.get(new.email.key)
        account = self._read(row)
        if account is not None and account.registration == new.registration:
            return Registered(account.id, account.registration, account.created_at, new.mail_id)
        if self._overtaken(new):
            return RequestInProgress(1)
        if row is not None and account is not None:
            if account.state(self._policy.attempts) not in VACANT:
                return EmailTaken()
            wait = self._free_at(row.issued, cooldown=False) - self._clock.now
            if wait > timedelta():
                return CodesExhausted(wait.total_seconds())
        row = self._rows[new.email.key] = self._pending(new, row)
        self.mails[new.mail_id] = new.code_id
        registered = Registered(row.account.id, new.registration, row.account.created_at, new.mail_id)
        if new.idempotency is not None:
            self._keys.bind(new.idempotency, registered)
        return registered

    def _overtaken(self, new: NewAccount) -> bool:
        return new.idempotency is not None and not self._keys.holds(new.idempotency)

    def _pending(self, new: NewAccount, before: Row | None) -> Row:
        """Return the row of a new account, or of one that replaces an account whose code is dead."""
        now = self._clock.now
        account = Account(
            id=before.account.id if before else new.id,
            email=new.email.typed,
            email_key=new.email.key,
            password_hash=new.password_hash,
            locale=new.locale,
            created_at=before.account.created_at if before else now,
            registration=new.registration,
            registered_at=now,
            activated_at=None,
            code=self._new(new.code_id),
            code_mail=CodeMail.OWED,
            accepted_at=None,
            old_code=None,
            superseded=_dead(before.account, before.account.old_code, before.account.code) if before else (),
            resend_at=now,
            codes_left_today=None,
            read_at=now,
        )
        return Row(account, [*(before.issued if before else []), now])

    async def redeem(self, tries: Sequence[Redemption]) -> list[Redeemed | Missed | None]:
        """Decide each try."""
        self._present()
        return [self._redeem(one) for one in tries]

    def _redeem(self, one: Redemption) -> Redeemed | Missed | None:
        row = self._row(one.account)
        if row is None:
            return None
        if row.activated_by == one.redeem_id and row.account.activated_at is not None:
            return Redeemed(row.account.activated_at)
        live = self._live(row)
        meant = one.hit in live if one.hit is not None else set(live) <= set(one.live)
        if row.account.password_hash != one.password_hash or not live or not meant:
            return None
        if one.hit is not None:
            row.account, row.activated_by = replace(row.account, activated_at=self._clock.now), one.redeem_id
            return Redeemed(self._clock.now)
        code, old = row.account.code, row.account.old_code
        code = replace(code, attempts=code.attempts + (code.id in live))
        old = replace(old, attempts=old.attempts + (old.id in live)) if old else None
        row.account = replace(row.account, code=code, old_code=old, read_at=self._clock.now)
        return Missed(row.account.attempts_left(self._policy.attempts))

    async def issue(self, codes: Sequence[NewCode]) -> list[Resent | None]:
        """Give each pending account a new code within its budget and cool-down."""
        self._present()
        return [self._issue(code) for code in codes]

    def _issue(self, new: NewCode) -> Resent | None:
        row = self._row(new.account)
        if row is None:
            return None
        if row.account.code.id == new.code_id:
            return self._resent(row, new.mail_id)
        mine = row.account.password_hash == new.password_hash and row.account.activated_at is None
        if not mine or self._free_at(row.issued, cooldown=True) > self._clock.now:
            return None
        unsent = row.account.code_mail not in {CodeMail.ACCEPTED, CodeMail.DELIVERED}
        kept, dead = row.account.code, row.account.old_code
        if row.account.old_code is not None and unsent:
            kept, dead = row.account.old_code, row.account.code
        row.account = replace(
            row.account,
            code=self._new(new.code_id),
            old_code=kept,
            superseded=_dead(row.account, dead),
            code_mail=CodeMail.OWED,
            accepted_at=None,
            locale=new.locale or row.account.locale,
        )
        row.issued.append(self._clock.now)
        self.mails[new.mail_id] = new.code_id
        return self._resent(row, new.mail_id)

    def _resent(self, row: Row, mail_id: UUID) -> Resent:
        wait = (self._free_at(row.issued, cooldown=True) - self._clock.now).total_seconds()
        return Resent(mail_id, max(0.0, wait), self._left_today(row.issued))

    def replace_password(self, email_key: str, password_hash: bytes) -> None:
        """Change the account's password, as a registration that replaces it does."""
        row = self._rows[email_key]
        row.account = replace(row.account, password_hash=password_hash)

    def mail_taken(self, mail_id: UUID) -> None:
        """Write that a worker has the mail in its hands."""
        self._mail(mail_id, CodeMail.SENDING)

    def mail_dead(self, mail_id: UUID) -> None:
        """Write that the mail will never arrive."""
        self._mail(mail_id, CodeMail.DEAD)

    def mail_accepted(self, mail_id: UUID) -> None:
        """Write that the mail server took it: the code's time starts, and the code before dies."""
        now, ttl = self._clock.now, timedelta(seconds=self._policy.ttl)
        code_id = self.mails[mail_id]
        for row in self._rows.values():
            account = row.account
            if account.code.id == code_id:
                row.account = replace(
                    account,
                    code=replace(account.code, expires_at=min(account.code.expires_at, now + ttl)),
                    old_code=None,
                    superseded=_dead(account, account.old_code),
                    code_mail=CodeMail.ACCEPTED,
                    accepted_at=now,
                )
            elif account.old_code is not None and account.old_code.id == code_id:
                end = min(account.old_code.expires_at, now + ttl)
                row.account = replace(account, old_code=replace(account.old_code, expires_at=end))

    def _mail(self, mail_id: UUID, state: CodeMail) -> None:
        for row in self._rows.values():
            if row.account.code.id == self.mails[mail_id]:
                row.account = replace(row.account, code_mail=state)

    def _new(self, code_id: CodeId) -> Code:
        return Code(code_id, self._clock.now + timedelta(seconds=self._policy.max_age), 0)

    def _row(self, account: UUID) -> Row | None:
        return next((row for row in self._rows.values() if row.account.id == account), None)

    def _live(self, row: Row) -> list[CodeId]:
        account = replace(row.account, read_at=self._clock.now)
        return [code.id for code in account.live_codes(self._policy.attempts)]

    def _read(self, row: Row | None) -> Account | None:
        if row is None:
            return None
        return replace(
            row.account,
            resend_at=self._free_at(row.issued, cooldown=True),
            codes_left_today=self._left_today(row.issued),
            read_at=self._clock.now,
        )

    def _free_at(self, issued: list[datetime], *, cooldown: bool) -> datetime:
        windows = [(rule.limit, rule.seconds) for rule in self._policy.budget]
        windows += [(1, self._policy.cooldown)] if cooldown and self._policy.cooldown else []
        ends = [issued[-limit] + timedelta(seconds=seconds) for limit, seconds in windows if len(issued) >= limit]
        return max(ends, default=EPOCH)

    def _left_today(self, issued: list[datetime]) -> int | None:
        today = sum(at > self._clock.now - timedelta(seconds=DAY) for at in issued)
        return min((max(0, rule.limit - today) for rule in self._policy.budget if rule.seconds == DAY), default=None)

    def _present(self) -> None:
        if self.away is not None:
            raise self.away


def _dead(account: Account, *codes: Code | None) -> tuple[CodeId, ...]:
    return (*account.superseded, *(code.id for code in codes if code is not None))[-REMEMBERED:]
