"""The accounts with their codes in PostgreSQL: every race of a registration, an issue and a redeem is decided here.

A statement re-checks only the columns of a row that it had to wait for, never a sub-query about other rows. So what
one row decides is written into its WHERE, and what follows from other rows is guarded by the account's `version`.
PostgreSQL changes a row once per statement, so no batch names an account twice; every batch takes its accounts in the
order of their keys first, then their mails, so that no two wait for each other. `= ANY` beside a join has the planner
use an index even before it has any statistics.
"""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from actors.domain.mail import MailState
from actors.domain.user import Account, CodeMail
from actors.ports import Answer, Missed, Redeemed, Registered

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from typing import LiteralString
    from uuid import UUID

    from actors.domain.user import CodePolicy
    from actors.ports import Issue, KeyUse, Redeem, Register
    from service.postgres.pool import Postgres

MAILS_READ: Final = 1024  # more than a day of codes and their reissues in an outage: none may hide one that counts

ACCOUNT_COLUMNS: Final = 11  # of FIND; the others are a mail's
FIND: Final = """
SELECT a.id, a.email, a.email_key, convert_to(a.password_hash, 'UTF8'), a.locale, a.created_at, a.registration,
       a.registered_at, a.activated_at, a.version, now(),
       m.kind, m.id, m.registration, m.number, m.key_id, m.state, m.created_at, m.accepted_at, m.expires_at, m.guesses,
       m.counted
FROM vestibule.accounts a
LEFT JOIN LATERAL (
    SELECT * FROM vestibule.mails
    WHERE account_id = a.id AND (registration = a.registration OR created_at > now() - interval '1 day')
    ORDER BY number DESC LIMIT %(mails)s
) m ON true
"""
FIND_KEYS: Final = FIND + "WHERE a.email_key = ANY(%(wanted)s) ORDER BY a.id, m.number DESC"
FIND_IDS: Final = FIND + "WHERE a.id = ANY(%(wanted)s) ORDER BY a.id, m.number DESC"
FIND_ANSWERS: Final = """
SELECT digest, body_digest, account_id, registration,
       (SELECT created_at FROM vestibule.accounts a WHERE a.id = k.account_id)
FROM vestibule.answers k WHERE digest = ANY(%(digests)s) AND expires_at > now()
"""

# Race: any number of registrations of one new address. The insert of the account's unique key decides: one wins, the
# others get no row. All that follows is for winners only, so a loser writes nothing. A repeat of a committed batch
# finds its own ids in the second SELECT, which reads what was there before this statement.
ADD: Final = """
WITH wanted AS (
    SELECT * FROM unnest(
        %(ids)s::uuid[], %(keys)s::text[], %(emails)s::text[], %(hashes)s::text[], %(locales)s::text[],
        %(mails)s::uuid[], %(key_ids)s::text[], %(traces)s::text[], %(digests)s::bytea[], %(bodies)s::bytea[]
    ) AS w (id, email_key, email, password_hash, locale, mail_id, key_id, traceparent, digest, body_digest)
), added AS (
    INSERT INTO vestibule.accounts (id, email_key, email, password_hash, locale)
    SELECT id, email_key, email, password_hash, locale FROM wanted ORDER BY email_key
    ON CONFLICT DO NOTHING -- of email_key: the first of two racing registrations wins
    RETURNING id, registration, created_at
), mailed AS (
    INSERT INTO vestibule.mails (id, account_id, registration, number, kind, key_id, expires_at, traceparent)
    SELECT w.mail_id, w.id, 1, 1, 'code', w.key_id, now() + make_interval(secs => %(max_age)s), w.traceparent
    FROM added JOIN wanted w USING (id)
), answered AS (
    INSERT INTO vestibule.answers AS k (digest, body_digest, account_id, registration)
    SELECT w.digest, w.body_digest, w.id, 1 FROM added JOIN wanted w USING (id) WHERE w.digest IS NOT NULL
    ON CONFLICT (digest) DO UPDATE SET body_digest = EXCLUDED.body_digest, account_id = EXCLUDED.account_id,
        registration = EXCLUDED.registration, expires_at = EXCLUDED.expires_at
    WHERE k.expires_at <= now()
), counted AS (
    INSERT INTO vestibule.business_counts AS b (day, worker, registrations)
    SELECT (now() AT TIME ZONE 'UTC')::date, %(worker)s, count(*) FROM added HAVING count(*) > 0
    ON CONFLICT (day, worker) DO UPDATE SET registrations = b.registrations + EXCLUDED.registrations
)
SELECT id, registration, created_at FROM added
UNION ALL SELECT id, 1, created_at FROM vestibule.accounts WHERE id = ANY(%(ids)s)
"""

# Race: two issues at once, a take-over against a resend or a redeem. Whoever raises the version first wins, and the
# others look again; an account that was activated meanwhile is not taken over. What was never tried cannot have arrived
# and is superseded at once; what may have arrived lives until the new mail is accepted.
ISSUE: Final = """
WITH wanted AS (
    SELECT * FROM unnest(
        %(accounts)s::uuid[], %(versions)s::integer[], %(mails)s::uuid[], %(kinds)s::text[], %(key_ids)s::text[],
        %(traces)s::text[], %(hashes)s::text[], %(emails)s::text[], %(locales)s::text[], %(digests)s::bytea[],
        %(bodies)s::bytea[], %(guesses)s::integer[], %(counted)s::boolean[]
    ) AS w (account, version, mail_id, kind, key_id, traceparent, password_hash, email, locale, digest, body_digest,
            guesses, counted)
), locked AS MATERIALIZED (
    SELECT id FROM vestibule.accounts WHERE id = ANY(%(accounts)s) ORDER BY email_key FOR NO KEY UPDATE
), issued AS (
    UPDATE vestibule.accounts a SET
        version = a.version + 1,
        registration = a.registration + (w.password_hash IS NOT NULL)::integer,
        registered_at = CASE WHEN w.password_hash IS NOT NULL THEN now() ELSE a.registered_at END,
        password_hash = coalesce(w.password_hash, a.password_hash),
        email = coalesce(w.email, a.email),
        locale = coalesce(w.locale, a.locale)
    FROM locked JOIN wanted w ON w.account = locked.id
    WHERE a.id = locked.id AND a.id = ANY(%(accounts)s) AND a.version = w.version
      AND (a.activated_at IS NULL OR w.kind = 'notice')
    RETURNING a.id, a.registration, a.version AS number, a.created_at, w.*, w.password_hash IS NOT NULL AS taken_over
), superseded AS (
    UPDATE vestibule.mails m SET state = 'superseded'
    FROM issued i
    WHERE m.account_id = i.id AND i.kind = 'code' AND m.kind = 'code' AND m.state = 'queued'
      AND (m.tries = 0 OR i.taken_over)
), mailed AS (
    INSERT INTO vestibule.mails (id, account_id, registration, number, kind, key_id, expires_at, traceparent, guesses,
                                 counted)
    SELECT mail_id, id, registration, number, kind, key_id, now() + make_interval(secs => %(max_age)s), traceparent,
           guesses, counted
    FROM issued
), answered AS (
    INSERT INTO vestibule.answers AS k (digest, body_digest, account_id, registration)
    SELECT digest, body_digest, id, registration FROM issued WHERE digest IS NOT NULL
    ON CONFLICT (digest) DO UPDATE SET body_digest = EXCLUDED.body_digest, account_id = EXCLUDED.account_id,
        registration = EXCLUDED.registration, expires_at = EXCLUDED.expires_at
    WHERE k.expires_at <= now()
), counted AS (
    INSERT INTO vestibule.business_counts AS b (day, worker, registrations, resends)
    SELECT (now() AT TIME ZONE 'UTC')::date, %(worker)s, count(*) FILTER (WHERE taken_over),
           count(*) FILTER (WHERE NOT taken_over AND counted)
    FROM issued WHERE kind = 'code' HAVING count(*) > 0
    ON CONFLICT (day, worker) DO UPDATE SET
        registrations = b.registrations + EXCLUDED.registrations, resends = b.resends + EXCLUDED.resends
)
SELECT id, registration, created_at FROM issued
UNION ALL
SELECT a.id, m.registration, a.created_at FROM vestibule.mails m JOIN vestibule.accounts a ON a.id = m.account_id
WHERE m.id = ANY(%(mails)s) AND a.id = ANY(%(accounts)s)
"""

BIND_TAKEN: Final = """
INSERT INTO vestibule.answers AS k (digest, body_digest)
SELECT * FROM unnest(%(digests)s::bytea[], %(bodies)s::bytea[]) AS w (digest, body_digest) ORDER BY digest
ON CONFLICT (digest) DO UPDATE SET body_digest = EXCLUDED.body_digest, account_id = NULL, registration = NULL,
    expires_at = EXCLUDED.expires_at
WHERE k.expires_at <= now()
"""

# Attack: guessing. The guess is counted on the rows of the live mails by the statement that decides, so parallel
# guesses cannot share one: each waits for the account and for its mails, and reads them as they are then. A miss counts
# only if the typed code was compared with every live one. Race: 16 redeemers of one code: the account is active for 15
# of them. A re-registration in between has another password hash and registration.
REDEEM: Final = """
WITH wanted AS (
    SELECT * FROM unnest(
        %(accounts)s::uuid[], %(hashes)s::text[], %(registrations)s::integer[], %(hits)s::uuid[]
    ) AS w (account, password_hash, registration, hit)
), locked AS MATERIALIZED (
    SELECT id, password_hash, registration, activated_at FROM vestibule.accounts
    WHERE id = ANY(%(accounts)s) ORDER BY email_key FOR NO KEY UPDATE
), live AS MATERIALIZED (
    SELECT m.id, m.account_id, w.hit
    FROM locked l
    JOIN wanted w ON w.account = l.id AND w.password_hash = l.password_hash AND w.registration = l.registration
    JOIN vestibule.mails m ON m.account_id = l.id AND m.registration = l.registration
    WHERE l.activated_at IS NULL AND m.account_id = ANY(%(accounts)s) AND m.kind = 'code'
      AND m.state IN ('queued', 'sending', 'accepted', 'delivered') AND now() < m.expires_at
      AND m.guesses < %(attempts)s
    ORDER BY m.id FOR NO KEY UPDATE OF m
), guessed AS (
    UPDATE vestibule.mails m SET guesses = m.guesses + 1 FROM live
    WHERE m.id = live.id AND CASE WHEN live.hit IS NOT NULL THEN m.id = live.hit ELSE NOT EXISTS (
        SELECT FROM live AS other WHERE other.account_id = live.account_id AND other.id <> ALL(%(compared)s)
    ) END
    RETURNING m.id, m.account_id, m.guesses
), activated AS (
    UPDATE vestibule.accounts a SET activated_at = now()
    FROM guessed g JOIN wanted w ON w.hit = g.id
    WHERE a.id = g.account_id AND a.activated_at IS NULL
    RETURNING a.id, a.activated_at
), counted AS (
    INSERT INTO vestibule.business_counts AS b (day, worker, activations)
    SELECT (now() AT TIME ZONE 'UTC')::date, %(worker)s, count(*) FROM activated HAVING count(*) > 0
    ON CONFLICT (day, worker) DO UPDATE SET activations = b.activations + EXCLUDED.activations
)
SELECT g.account_id, max(activated.activated_at), %(attempts)s - min(g.guesses)
FROM guessed g LEFT JOIN activated ON activated.id = g.account_id GROUP BY g.account_id
"""


class PostgresAccounts:
    """The Accounts port; `worker` names this process in the business counters."""

    def __init__(self, postgres: Postgres, policy: CodePolicy, worker: str) -> None:
        self._postgres = postgres
        self._policy = policy
        self._worker = worker

    async def find(self, email_keys: Sequence[str]) -> list[Account | None]:
        """Return the account of each address, or None."""
        found = {account.email_key: account for account in await self._find(FIND_KEYS, email_keys)}
        return [found.get(key) for key in email_keys]

    async def find_by_id(self, accounts: Sequence[UUID]) -> list[Account | None]:
        """Return each account, or None."""
        found = {account.id: account for account in await self._find(FIND_IDS, accounts)}
        return [found.get(account) for account in accounts]

    async def _find(self, sql: LiteralString, wanted: Sequence[object]) -> list[Account]:
        parameters = {"wanted": list(set(wanted)), "mails": MAILS_READ}
        return list(_accounts(await self._postgres.run(sql, parameters, reading=True)))

    async def find_answers(self, digests: Collection[bytes]) -> dict[bytes, Answer]:
        """Return what the idempotency keys with these digests were bound to; unknown and expired ones are missing."""
        rows = await self._postgres.run(FIND_ANSWERS, {"digests": list(digests)}, reading=True)
        return {
            bytes(digest): Answer(bytes(body), Registered(account, registration, created_at) if account else None)
            for digest, body, account, registration, created_at in rows
        }

    async def add(self, accounts: Sequence[Register]) -> list[Registered | None]:
        """Add each account with its mail, answer and count; None where the address has an account already."""
        parameters = {
            "ids": [new.id for new in accounts],
            "keys": [new.email.key for new in accounts],
            "emails": [new.email.typed for new in accounts],
            "hashes": [new.password_hash.decode() for new in accounts],
            "locales": [new.locale for new in accounts],
            "mails": [new.mail.id for new in accounts],
            "key_ids": [new.mail.key_id for new in accounts],
            "traces": [new.mail.traceparent for new in accounts],
            **_keys(new.key for new in accounts),
            "max_age": self._policy.max_age_seconds,
            "worker": self._worker,
        }
        added = _registered(await self._postgres.run(ADD, parameters))
        return [added.get(new.id) for new in accounts]

    async def issue(self, issues: Sequence[Issue]) -> list[Registered | None]:
        """Owe each mail (and take the account over); None where the account is no longer at that version, or active."""
        take_overs = [issue.take_over for issue in issues]
        parameters = {
            "accounts": [issue.account for issue in issues],
            "versions": [issue.version for issue in issues],
            "mails": [issue.mail.id for issue in issues],
            "kinds": [issue.mail.kind.value for issue in issues],
            "key_ids": [issue.mail.key_id for issue in issues],
            "traces": [issue.mail.traceparent for issue in issues],
            "guesses": [issue.mail.guesses for issue in issues],
            "counted": [issue.mail.counted for issue in issues],
            "hashes": [new and new.password_hash.decode() for new in take_overs],
            "emails": [new and new.email.typed for new in take_overs],
            "locales": [new and new.locale for new in take_overs],
            **_keys(new.key if new else None for new in take_overs),
            "max_age": self._policy.max_age_seconds,
            "worker": self._worker,
        }
        issued = _registered(await self._postgres.run(ISSUE, parameters))
        return [issued.get(issue.account) for issue in issues]

    async def bind_taken(self, keys: Sequence[KeyUse]) -> None:
        """Bind keys that were answered without a registration (strict mode, a taken address)."""
        await self._postgres.run(BIND_TAKEN, _keys(keys))

    async def redeem(self, tries: Sequence[Redeem]) -> list[Redeemed | Missed | None]:
        """Decide each try in one statement; None when nothing matched any more: look again and say why."""
        parameters = {
            "accounts": [one.account for one in tries],
            "hashes": [one.password_hash.decode() for one in tries],
            "registrations": [one.registration for one in tries],
            "hits": [one.hit for one in tries],
            "compared": [mail for one in tries for mail in one.compared],
            "attempts": self._policy.attempts,
            "worker": self._worker,
        }
        rows = await self._postgres.run(REDEEM, parameters, repeatable=False)
        outcomes = {account: Redeemed(at) if at else Missed(left) for account, at, left in rows}
        return [outcomes.get(one.account) for one in tries]


def _accounts(rows: Iterable[tuple[Any, ...]]) -> Iterator[Account]:
    """Gather the rows of each account, which follow each other: one for each of its mails, the newest first."""
    for _, group in groupby(rows, key=itemgetter(0)):
        own = list(group)
        *facts, read_at = own[0][:ACCOUNT_COLUMNS]
        codes, notices = [], []
        for row in own:
            kind, mail, registration, number, key_id, state, created_at, *others = row[ACCOUNT_COLUMNS:]
            if kind == "code":
                codes.append(CodeMail(mail, registration, number, key_id, MailState(state), created_at, *others))
            elif kind == "notice":
                notices.append(created_at)
        facts += (tuple(codes), max(notices, default=None), read_at)
        yield Account(*facts)


def _keys(keys: Iterable[KeyUse | None]) -> dict[str, object]:
    used = list(keys)
    return {"digests": [key and key.digest for key in used], "bodies": [key and key.body_digest for key in used]}


def _registered(rows: Iterable[tuple[Any, ...]]) -> dict[UUID, Registered]:
    return {account: Registered(account, registration, created) for account, registration, created in rows}
