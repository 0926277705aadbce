"""Accounts and codes under ENUMERATION=strict: each registration of an address is a row that answers for itself."""

# ruff: noqa: S608 - statements are joined of constants, no input among them
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from actors.domain.errors import RequestInProgress
from actors.ports import Registered
from service.adapters.postgres_accounts import FIND
from service.adapters.postgres_codes import REDEEM_LOCKED, PostgresCodes
from service.adapters.postgres_registrations import WANTED, wanted
from service.adapters.postgres_rows import account_from

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import LiteralString

    from actors.domain.errors import Refusal
    from actors.domain.user import Account
    from actors.ports import NewAccount
    from service.adapters.postgres import Postgres
    from service.adapters.postgres_codes import CodePolicy

KEEP_DAYS = 30  # an unproven registration, of a free address as of a taken one: the mail has long been read or lost
SHADOWS_KEPT = 64  # of one address: a client can add three an hour, and a log-in reads them all

FIND_ALL: Final = (
    FIND
    + """WHERE u.email_key = ANY(%(keys)s) OR u.shadow_of = ANY(%(keys)s)
ORDER BY u.activated_at NULLS LAST, u.created_at, u.id"""
)

# Race: any number of registrations of one address. The function queues them up behind the address' row; batches take
# those rows in the order of their keys, so that none waits in a circle.
REGISTER: Final = (
    "WITH "
    + WANTED
    + """, entered AS MATERIALIZED (
    SELECT w.place, w.digest, e.*
    FROM wanted w, LATERAL register_strictly(
        w.id, w.registration_id, w.email_key, w.email, w.password_hash, w.locale, w.code_id, w.mail_id, w.traceparent,
        %(attempts)s, %(max_age)s, %(keep_days)s, %(kept)s, %(limits)s, %(seconds)s
    ) AS e
), bound AS (
    UPDATE idempotency_keys k SET user_id = e.entered, registration_id = e.registered, created_at = e.born
    FROM entered e WHERE k.digest = e.digest
), counted AS (
    INSERT INTO business_counts AS b (day, worker, registrations)
    SELECT (now() AT TIME ZONE 'UTC')::date, %(worker)s, count(*) FILTER (WHERE owed = 'code') FROM entered
    ON CONFLICT (day, worker) DO UPDATE SET registrations = b.registrations + EXCLUDED.registrations
)
SELECT e.entered, e.registered, e.born FROM asked LEFT JOIN entered e USING (place) ORDER BY place
"""
)
# Whoever works on registrations of several addresses takes the addresses first, in their order: the rows of one of them
# have none, as each may come to hold it.
REDEEM: Final = (
    """
WITH addresses AS MATERIALIZED (
    SELECT lock_address(address) FROM (
        SELECT DISTINCT coalesce(shadow_of, email_key) AS address FROM users WHERE id = ANY(%(accounts)s)
        ORDER BY address
    ) AS a
), locked AS MATERIALIZED (
    SELECT id FROM users WHERE id = ANY(%(accounts)s) AND (SELECT count(*) FROM addresses) > 0 FOR NO KEY UPDATE
)"""
    + REDEEM_LOCKED
)
ISSUE: Final = """
WITH wanted AS (
    SELECT w.*, coalesce(u.shadow_of, u.email_key) AS address FROM unnest(
        %(accounts)s::uuid[], %(hashes)s::text[], %(codes)s::text[], %(mails)s::uuid[], %(locales)s::text[],
        %(traces)s::text[]
    ) WITH ORDINALITY AS w (account, password_hash, code_id, mail_id, locale, traceparent, place)
    LEFT JOIN users u ON u.id = w.account ORDER BY address, place
), issued AS MATERIALIZED (
    SELECT w.place, i.*
    FROM wanted w, LATERAL issue_strictly(
        w.account, w.password_hash, w.code_id, w.mail_id, w.locale, w.traceparent, %(attempts)s, %(max_age)s,
        %(keep_days)s, %(limits)s, %(seconds)s, %(own_limits)s, %(own_seconds)s
    ) AS i
), counted AS (
    INSERT INTO business_counts AS b (day, worker, resends)
    SELECT (now() AT TIME ZONE 'UTC')::date, %(worker)s, count(*) FILTER (WHERE owed = 'code') FROM issued
    ON CONFLICT (day, worker) DO UPDATE SET resends = b.resends + EXCLUDED.resends
)
SELECT owed, extract(epoch FROM resend_at - now())::float8, left_today FROM issued ORDER BY place
"""


class PostgresShadows:
    """The Registrations port; `worker` names this process in the business counters."""

    def __init__(self, postgres: Postgres, policy: CodePolicy, worker: str) -> None:
        self._postgres = postgres
        self._policy = policy
        self._worker = worker

    async def find_all(self, email_keys: Sequence[str]) -> list[tuple[Account, ...]]:
        """Return the registrations of each address."""
        parameters = {"keys": list(email_keys), **self._policy.windows(cooldown=True)}
        found = [account_from(row) for row in await self._postgres.run(FIND_ALL, parameters, reading=True)]
        return [tuple(account for account in found if account.email_key == key) for key in email_keys]

    async def enter(self, accounts: Sequence[NewAccount]) -> list[Registered | Refusal]:
        """Register each, and return what stands for its address and password."""
        parameters: dict[str, Any] = {
            **wanted(accounts),
            "kept": SHADOWS_KEPT,
            **_of(self._policy, self._worker),
        }
        rows = await self._postgres.run(REGISTER, parameters)
        return [
            Registered(user_id, registration, created_at, account.mail_id) if user_id else RequestInProgress(1)
            for account, (user_id, registration, created_at) in zip(accounts, rows, strict=True)
        ]


class PostgresShadowCodes(PostgresCodes):
    """The Codes port under ENUMERATION=strict: each registration has its own budget and cool-down."""

    redeeming: ClassVar[LiteralString] = REDEEM
    issuing: ClassVar[LiteralString] = ISSUE

    def _rules(self) -> dict[str, object]:
        own = self._policy.windows(cooldown=True)
        return {"own_limits": own["limits"], "own_seconds": own["seconds"], **_of(self._policy, self._worker)}


def _of(policy: CodePolicy, worker: str) -> dict[str, object]:
    return {
        "attempts": policy.attempts,
        "max_age": policy.max_age,
        "keep_days": KEEP_DAYS,
        "worker": worker,
        **policy.windows(cooldown=False),
    }
