"""The Accounts port in memory, on a clock in the test's hands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from actors.domain.mail import OWED, MailKind, MailState
from actors.domain.rate_limit import Rule
from actors.domain.user import Account, CodeMail, CodePolicy
from actors.ports import Answer, Issue, KeyUse, Missed, NewMail, Redeem, Redeemed, Register, Registered
from tests.fakes.clock import FakeClock

POLICY = CodePolicy(
    attempts=5,
    ttl_seconds=60,
    max_age_seconds=900,
    cooldown_seconds=30,
    budgets=(Rule("codes", 5, 3600), Rule("codes", 10, 86400)),
)


ADA = "ada@example.com"  # whom the hands of others touch


class FakeAccounts:
    """Decides as the database does; `away` makes every call raise it, `changed` counts down refused writes.

    `mails` lists all code mails in the order of issue, `notices` the others. `after_add` is awaited behind each `add`.
    """

    def __init__(self, clock: FakeClock, policy: CodePolicy = POLICY) -> None:
        self._clock = clock
        self._policy = policy
        self._accounts: dict[str, Account] = {}
        self._answers: dict[bytes, Answer] = {}
        self.mails: list[NewMail] = []
        self.notices: list[NewMail] = []
        self.away: Exception | None = None
        self.changed = 0
        self.after_add: Callable[[], Awaitable[None]] | None = None

    def _reach(self) -> None:
        if self.away is not None:
            raise self.away

    async def find(self, email_keys: Sequence[str]) -> list[Account | None]:
        """Return what is there, as of now."""
        self._reach()
        return [self._seen(self._accounts.get(key)) for key in email_keys]

    async def find_by_id(self, accounts: Sequence[UUID]) -> list[Account | None]:
        """Return what is there, as of now."""
        self._reach()
        by_id = {account.id: account for account in self._accounts.values()}
        return [self._seen(by_id.get(account)) for account in accounts]

    def _seen(self, account: Account | None) -> Account | None:
        return account and replace(account, read_at=self._clock.now)

    async def find_answers(self, digests: Collection[bytes]) -> dict[bytes, Answer]:
        """Return the bound keys."""
        self._reach()
        return {digest: self._answers[digest] for digest in digests if digest in self._answers}

    async def add(self, accounts: Sequence[Register]) -> list[Registered | None]:
        """Add each new address."""
        self._reach()
        keys = [new.email.key for new in accounts]
        assert len(set(keys)) == len(keys), "a batch names an address once"
        added = [self._add(new) for new in accounts]
        if self.after_add is not None:
            await self.after_add()
        return added

    def _add(self, new: Register) -> Registered | None:
        if new.email.key in self._accounts:
            return None
        now = self._clock.now
        account = Account(
            id=new.id,
            email=new.email.typed,
            email_key=new.email.key,
            password_hash=new.password_hash,
            locale=new.locale,
            created_at=now,
            registration=1,
            registered_at=now,
            activated_at=None,
            version=0,
            mails=(),
            noticed_at=None,
            read_at=now,
        )
        self._store(self._with_mail(account, new.mail))
        return self._registered(new.email.key, new.key)

    async def issue(self, issues: Sequence[Issue]) -> list[Registered | None]:
        """Issue where the account is still at its version."""
        self._reach()
        named = [issue.account for issue in issues]
        assert len(set(named)) == len(named), "a batch names an account once"
        return [self._issue(issue) for issue in issues]

    def _issue(self, issue: Issue) -> Registered | None:
        [account] = [account for account in self._accounts.values() if account.id == issue.account]
        notice = issue.mail.kind is MailKind.NOTICE
        active = account.activated_at is not None
        if self.changed or account.version != issue.version or (active and not notice):
            self.changed = max(0, self.changed - 1)
            return None
        if notice:
            self.notices.append(issue.mail)
            self._store(replace(account, version=account.version + 1, noticed_at=self._clock.now))
            return self._registered(account.email_key, None)
        if issue.take_over is not None:
            account = replace(
                account,
                registration=account.registration + 1,
                registered_at=self._clock.now,
                password_hash=issue.take_over.password_hash,
                email=issue.take_over.email.typed,
                locale=issue.take_over.locale,
            )
        self._store(self._with_mail(account, issue.mail))
        return self._registered(account.email_key, issue.take_over.key if issue.take_over else None)

    async def bind_taken(self, keys: Sequence[KeyUse]) -> None:
        """Bind keys to no registration."""
        self._reach()
        for key in keys:
            self._answers.setdefault(key.digest, Answer(key.body_digest, None))

    async def redeem(self, tries: Sequence[Redeem]) -> list[Redeemed | Missed | None]:
        """Decide each try."""
        self._reach()
        named = [one.account for one in tries]
        assert len(set(named)) == len(named), "a batch names an account once"
        return [self._redeem(one) for one in tries]

    def _redeem(self, one: Redeem) -> Redeemed | Missed | None:
        [account] = [account for account in self._accounts.values() if account.id == one.account]
        account = replace(account, read_at=self._clock.now)
        live = [mail.id for mail in account.live_mails(self._policy)]
        current = account.password_hash == one.password_hash and account.registration == one.registration
        if self.changed or not current or not live or not set(live) <= set(one.compared):
            self.changed = max(0, self.changed - 1)
            return None
        if one.hit is not None:
            if one.hit not in live:
                return None
            self._store(replace(account, activated_at=self._clock.now))
            return Redeemed(self._clock.now)
        counted = [replace(mail, guesses=mail.guesses + (mail.id in live)) for mail in account.mails]
        account = replace(account, mails=tuple(counted))
        self._store(account)
        return Missed(account.attempts_left(self._policy))

    # What happens elsewhere, in the mail worker or at another process.

    def mail_is(self, state: MailState) -> None:
        """Put the newest mail of the account into a state; accepted ones start their minute and supersede the older."""
        account = self._accounts[ADA]
        newest, older = account.mails[0], account.mails[1:]
        if state is MailState.ACCEPTED:
            end = min(newest.expires_at, self._clock.now + timedelta(seconds=self._policy.ttl_seconds))
            newest = replace(newest, accepted_at=self._clock.now, expires_at=end)
            older = tuple(replace(mail, state=MailState.SUPERSEDED) for mail in older)
        self._store(replace(account, mails=(replace(newest, state=state), *older)))

    def replace_password(self, password_hash: bytes) -> None:
        """Let another registration take the account over."""
        account = self._accounts[ADA]
        self._store(replace(account, password_hash=password_hash, registration=account.registration + 1))

    def forget_account(self) -> None:
        """Let an operator delete the account."""
        del self._accounts[ADA]

    def forget_mails(self) -> None:
        """Let the purge delete the account's mails."""
        self._store(replace(self._accounts[ADA], mails=()))

    def _with_mail(self, account: Account, mail: NewMail) -> Account:
        now = self._clock.now
        self.mails.append(mail)
        new = CodeMail(
            id=mail.id,
            registration=account.registration,
            number=account.version + 1,
            key_id=mail.key_id,
            state=MailState.QUEUED,
            created_at=now,
            accepted_at=None,
            expires_at=now + timedelta(seconds=self._policy.max_age_seconds),
            guesses=0,
            counted=True,
        )
        older = [replace(old, state=MailState.SUPERSEDED) if self._untried(old) else old for old in account.mails]
        return replace(account, version=account.version + 1, mails=(new, *older))

    def _untried(self, mail: CodeMail) -> bool:
        return mail.state in OWED - {MailState.SENDING}

    def _store(self, account: Account) -> None:
        self._accounts[account.email_key] = account

    def _registered(self, email_key: str, key: KeyUse | None) -> Registered:
        account = self._accounts[email_key]
        registered = Registered(account.id, account.registration, account.created_at)
        if key is not None:
            self._answers[key.digest] = Answer(key.body_digest, registered)
        return registered
