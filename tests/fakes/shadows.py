"""Registrations under ENUMERATION=strict in memory: any number of an address, of which one at most holds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from actors.domain.errors import RequestInProgress
from actors.domain.mail import MailKind
from actors.domain.user import State
from actors.ports import Registered
from tests.fakes.accounts import DEFAULTS, VACANT, FakeAccounts, Row

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from actors.domain.errors import Refusal
    from actors.domain.user import Account, Code
    from actors.ports import Missed, NewAccount, NewCode, Redeemed, Redemption, Resent
    from service.adapters.postgres_codes import CodePolicy
    from tests.fakes.clock import FakeClock
    from tests.fakes.idempotency import FakeIdempotencyKeys

DAY = timedelta(days=1)
LAST = datetime.max.replace(tzinfo=UTC)  # an account that is not active stands behind one that is
KEPT = 64


@dataclass(slots=True)
class Shared:
    """What all registrations of an address share."""

    sent: list[datetime]
    noticed_at: datetime | None = None


class FakeShadows(FakeAccounts):
    """The Registrations and the Codes port for one process; `kinds` says what each owed mail is."""

    def __init__(self, clock: FakeClock, keys: FakeIdempotencyKeys, policy: CodePolicy = DEFAULTS) -> None:
        super().__init__(clock, keys, policy)
        self.kinds: dict[UUID, MailKind] = {}
        self.shared: dict[str, Shared] = {}

    async def find_all(self, email_keys: Sequence[str]) -> list[tuple[Account, ...]]:
        """Return the registrations of each address."""
        self._present()
        return [tuple(filter(None, map(self._read, self._all(key)))) for key in email_keys]

    async def enter(self, accounts: Sequence[NewAccount]) -> list[Registered | Refusal]:
        """Register each, and return what stands for its address and password."""
        self._present()
        return [RequestInProgress(1) if self._overtaken(account) else self._enter(account) for account in accounts]

    def _all(self, email_key: str) -> list[Row]:
        rows = [row for row in self._rows.values() if row.account.email_key == email_key]
        return sorted(rows, key=lambda row: (row.account.activated_at or LAST, row.account.created_at))

    def _enter(self, new: NewAccount) -> Registered:
        address = new.email.key
        row = next((row for row in self._all(address) if row.account.password_hash == new.password_hash), None)
        if row is None or (row.account.registration != new.registration and self._may_register(row)):
            identity = row.account.id if row else new.id
            kind = self._take(address, identity, telling=True)
            code_id = new.code_id if kind is MailKind.CODE else new.code_id.silenced()
            row = self._pending(replace(new, code_id=code_id), row)
            self.kinds[new.mail_id], self.mails[new.mail_id] = kind, code_id
            self._place(row, holds=kind is MailKind.CODE)
            self._thin_out(address)
        registered = Registered(row.account.id, row.account.registration, row.account.created_at, new.mail_id)
        if new.idempotency is not None:
            self._keys.bind(new.idempotency, registered)
        return registered

    def _may_register(self, row: Row) -> bool:
        return self._is_vacant(row) and self._free_at(row.issued, cooldown=False) <= self._clock.now

    def _is_vacant(self, row: Row) -> bool:
        account = self._read(row)
        return account is not None and account.state(self._policy.attempts) in VACANT

    def _take(self, address: str, taker: UUID, *, telling: bool) -> MailKind:
        """Decide whether `taker` holds the address from now on, and silence whoever loses it."""
        now, holder = self._clock.now, self._rows.get(address)
        shared = self.shared.setdefault(address, Shared(list(holder.issued) if holder else []))
        mine = holder is not None and holder.account.id == taker
        vacant = holder is None or mine or self._is_vacant(holder)
        kind = MailKind.SILENT
        if vacant and self._free_at(shared.sent, cooldown=False) <= now:
            kind = MailKind.CODE
            shared.sent.append(now)
        elif telling and not vacant and (shared.noticed_at is None or shared.noticed_at <= now - DAY):
            kind = MailKind.NOTICE
            shared.noticed_at = now
        if holder is not None and (kind is MailKind.CODE) is not mine:
            account = holder.account
            old = _silent(account.old_code) if account.old_code else None
            holder.account = replace(account, code=_silent(account.code), old_code=old)
            self.mails.update({mail: code.silenced() for mail, code in self.mails.items() if code == account.code.id})
            self._place(holder, holds=False)
        return kind

    def _place(self, row: Row, *, holds: bool) -> None:
        identity = row.account.id
        self._rows = {key: other for key, other in self._rows.items() if other.account.id != identity}
        self._rows[row.account.email_key if holds else f"shadow:{identity}"] = row

    def _thin_out(self, address: str) -> None:
        shadows = [key for key, row in self._rows.items() if row.account.email_key == address != key]
        for key in sorted(shadows, key=lambda key: self._rows[key].account.registered_at)[:-KEPT]:
            del self._rows[key]

    def post(self) -> None:
        """Write that the mail server took every mail that is owed and needed."""
        rows = {row.account.code.id: row for row in self._rows.values()}
        for mail_id, code_id in self.mails.items():
            account = self._read(rows.get(code_id))
            if account is not None and account.state(self._policy.attempts) in {State.QUEUED, State.SENDING}:
                self.mail_accepted(mail_id)

    def _redeem(self, one: Redemption) -> Redeemed | Missed | None:
        row = self._row(one.account)
        if one.hit is not None and row is not None and self._rows.get(row.account.email_key) is not row:
            return None
        return super()._redeem(one)

    def _issue(self, new: NewCode) -> Resent | None:
        row = self._row(new.account)
        if row is None or row.account.password_hash != new.password_hash or row.account.activated_at is not None:
            return None
        if row.account.code.id.number == new.code_id.number:
            return self._resent(row, new.mail_id)
        if self._free_at(row.issued, cooldown=True) > self._clock.now:
            return None
        kind = self._take(row.account.email_key, row.account.id, telling=False)
        self._place(row, holds=kind is MailKind.CODE)
        self.kinds[new.mail_id] = kind
        code_id = new.code_id if kind is MailKind.CODE else new.code_id.silenced()
        return super()._issue(replace(new, code_id=code_id))


def _silent(code: Code) -> Code:
    return replace(code, id=code.id.silenced())
