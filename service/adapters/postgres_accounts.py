"""The accounts in Postgres: who has one, and who gets one; each race decided in one row of users."""

# ruff: noqa: S608 - statements are joined of constants, no input among them
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from actors.domain.errors import CodesExhausted, EmailTaken, RequestInProgress
from actors.ports import Registered
from service.adapters.postgres_registrations import WANTED, wanted
from service.adapters.postgres_rows import account_from

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from actors.domain.errors import Refusal
    from actors.domain.user import Account
    from actors.ports import NewAccount
    from service.adapters.postgres import Postgres
    from service.adapters.postgres_codes import CodePolicy

FIND: Final = """
SELECT u.id, u.email, coalesce(u.shadow_of, u.email_key), u.password_hash, u.locale, u.created_at,
       u.registration_id, u.registered_at, u.activated_at,
       u.code_id, u.code_expires_at, u.code_attempts, u.code_accepted_at,
       u.old_code_id, u.old_code_expires_at, u.old_code_attempts, u.superseded,
       CASE WHEN u.code_mail = 'owed' AND EXISTS (
           SELECT FROM mails m WHERE m.user_id = u.id AND m.code_id = u.code_id AND m.state = 'sending'
       ) THEN 'sending' ELSE u.code_mail END AS code_mail,
       codes_free_at(u.codes_issued, %(limits)s, %(seconds)s) AS resend_at,
       codes_left_today(u.codes_issued, %(limits)s, %(seconds)s, now()) AS codes_left_today,
       now() AS read_at
FROM users u
"""
FIND_KEYS: Final = FIND + "WHERE u.email_key = ANY(%(keys)s)"
FIND_REGISTRATIONS: Final = FIND + "WHERE u.registration_id = ANY(%(registrations)s)"

# Race: any number of registrations of one address. ON CONFLICT takes the row and sees its newest version, so one of
# them wins; `before` is the snapshot and only names the loser's refusal. Rows are taken in the order of their keys, so
# that two batches cannot wait for each other. A repeat of a registration that was committed finds itself in `before`.
REGISTER: Final = (
    "WITH "
    + WANTED
    + """, before AS (
    SELECT u.id, u.email_key, u.registration_id, u.created_at,
           u.activated_at IS NULL AND NOT (u.code_attempts < %(attempts)s AND (
               u.code_mail = 'owed' OR (u.code_mail IN ('accepted', 'delivered') AND now() < u.code_expires_at)
           )) AS vacant,
           codes_free_at(u.codes_issued, %(limits)s, %(seconds)s) AS free_at
    FROM users u JOIN asked a USING (email_key)
), won AS (
    INSERT INTO users AS u (id, email_key, email, password_hash, locale, registration_id, registered_at, code_id,
                            code_expires_at, codes_issued)
    SELECT id, email_key, email, password_hash, locale, registration_id, now(), code_id,
           now() + make_interval(secs => %(max_age)s), ARRAY[now()]
    FROM wanted
    ON CONFLICT (email_key) DO UPDATE SET
        email = EXCLUDED.email, password_hash = EXCLUDED.password_hash, locale = EXCLUDED.locale,
        registration_id = EXCLUDED.registration_id, registered_at = now(),
        superseded = with_superseded(u.superseded, u.old_code_id, u.code_id),
        code_id = EXCLUDED.code_id, code_expires_at = EXCLUDED.code_expires_at, code_attempts = 0,
        code_mail = 'owed', code_accepted_at = NULL,
        old_code_id = NULL, old_code_expires_at = NULL, old_code_attempts = NULL,
        codes_issued = codes_of_a_day(u.codes_issued, now()) || now()
    WHERE u.registration_id <> EXCLUDED.registration_id AND u.activated_at IS NULL
      AND NOT (u.code_attempts < %(attempts)s AND (
          u.code_mail = 'owed' OR (u.code_mail IN ('accepted', 'delivered') AND now() < u.code_expires_at)
      ))
      AND codes_free_at(u.codes_issued, %(limits)s, %(seconds)s) <= now()
    RETURNING u.id, u.email_key, u.registration_id, u.created_at
), withdrawn AS (
    UPDATE mails m SET state = 'dead', reason = 'superseded' FROM won WHERE m.user_id = won.id AND m.state = 'queued'
), owed AS (
    INSERT INTO mails (id, user_id, code_id, locale, traceparent)
    SELECT w.mail_id, won.id, w.code_id, w.locale, w.traceparent FROM won JOIN wanted w USING (email_key)
), bound AS (
    UPDATE idempotency_keys k SET user_id = won.id, registration_id = won.registration_id, created_at = won.created_at
    FROM won JOIN wanted w USING (email_key) WHERE k.digest = w.digest
), counted AS (
    INSERT INTO business_counts AS b (day, worker, registrations)
    SELECT (now() AT TIME ZONE 'UTC')::date, %(worker)s, count(*) FROM won HAVING count(*) > 0
    ON CONFLICT (day, worker) DO UPDATE SET registrations = b.registrations + EXCLUDED.registrations
)
SELECT coalesce(won.id, mine.id), coalesce(won.created_at, mine.created_at), w.place IS NULL, before.vacant,
       extract(epoch FROM before.free_at - now())::float8
FROM asked a
LEFT JOIN wanted w USING (place)
LEFT JOIN won ON won.registration_id = a.registration_id
LEFT JOIN before ON before.email_key = a.email_key
LEFT JOIN before mine ON mine.registration_id = a.registration_id
ORDER BY a.place
"""
)


class PostgresAccounts:
    """The Accounts port; `worker` names this process in the business counters."""

    def __init__(self, postgres: Postgres, policy: CodePolicy, worker: str) -> None:
        self._postgres = postgres
        self._policy = policy
        self._worker = worker

    async def find(self, email_keys: Sequence[str]) -> list[Account | None]:
        """Return the account of each address, or None."""
        parameters = {"keys": list(email_keys), **self._policy.windows(cooldown=True)}
        accounts = [account_from(row) for row in await self._postgres.run(FIND_KEYS, parameters, reading=True)]
        by_key = {account.email_key: account for account in accounts}
        return [by_key.get(key) for key in email_keys]

    async def find_registrations(self, registrations: Sequence[UUID]) -> list[Account | None]:
        """Return the account that each registration made, unless another registration has replaced it."""
        parameters = {"registrations": list(registrations), **self._policy.windows(cooldown=True)}
        rows = await self._postgres.run(FIND_REGISTRATIONS, parameters, reading=True)
        by_id = {account.registration: account for account in map(account_from, rows)}
        return [by_id.get(registration) for registration in registrations]

    async def register(self, accounts: Sequence[NewAccount]) -> list[Registered | Refusal]:
        """Add each account or replace a pending one whose code is dead."""
        parameters: dict[str, Any] = {
            **wanted(accounts),
            "max_age": self._policy.max_age,
            "attempts": self._policy.attempts,
            "worker": self._worker,
            **self._policy.windows(cooldown=False),
        }
        rows = await self._postgres.run(REGISTER, parameters)
        return [_registered(account, row) for account, row in zip(accounts, rows, strict=True)]


def _registered(account: NewAccount, row: tuple[Any, ...]) -> Registered | Refusal:
    user_id, created_at, overtaken, vacant, free_in = row
    if user_id is not None:
        return Registered(user_id, account.registration, created_at, account.mail_id)
    if overtaken:
        return RequestInProgress(1)
    if vacant and free_in > 0:
        return CodesExhausted(free_in)
    return EmailTaken()
