"""The codes in Postgres: redeemed and issued by one statement each, every race decided in one row of users."""

# ruff: noqa: S608 - statements are joined of constants, no input among them
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from actors.ports import Missed, Redeemed, Resent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from typing import LiteralString

    from actors.domain.windows import Rule
    from actors.ports import NewCode, Redemption
    from service.adapters.postgres import Postgres
    from service.settings import Settings

# Attack: guessing. The attempt is counted in the statement that decides, so parallel guesses cannot share one; a miss
# counts on every live code, and only if each of them was among the compared ones. Race: 16 redeemers of one code; the
# row's newest version is active for 15 of them. A re-registration in between has another password hash. Rows are locked
# in the order of their keys, here and below, as registrations take them, so that no two batches wait for each other.
REDEEM_LOCKED: Final = """, wanted AS (
    SELECT * FROM unnest(
        %(accounts)s::uuid[], %(hashes)s::text[], %(newest)s::text[], %(older)s::text[], %(hits)s::text[],
        %(redeems)s::uuid[]
    ) WITH ORDINALITY AS w (account, password_hash, newest, older, hit, redeem_id, place)
), tried AS (
    UPDATE users u SET
        activated_at = CASE WHEN w.hit IS NOT NULL THEN now() END,
        activated_by = CASE WHEN w.hit IS NOT NULL THEN w.redeem_id END,
        code_attempts = u.code_attempts + (w.hit IS NULL AND now() < u.code_expires_at
                                           AND u.code_attempts < %(attempts)s)::integer,
        old_code_attempts = u.old_code_attempts + (w.hit IS NULL AND now() < u.old_code_expires_at
                                                   AND u.old_code_attempts < %(attempts)s)::integer
    FROM locked JOIN wanted w ON w.account = locked.id
    WHERE u.id = locked.id AND u.password_hash = w.password_hash AND u.activated_at IS NULL
      AND (w.hit IS NULL OR u.shadow_of IS NULL)
      AND CASE
          WHEN w.hit = u.code_id THEN now() < u.code_expires_at AND u.code_attempts < %(attempts)s
          WHEN w.hit = u.old_code_id THEN now() < u.old_code_expires_at AND u.old_code_attempts < %(attempts)s
          WHEN w.hit IS NOT NULL THEN false
          ELSE (
              (now() < u.code_expires_at AND u.code_attempts < %(attempts)s)
              OR coalesce(now() < u.old_code_expires_at AND u.old_code_attempts < %(attempts)s, false)
          ) AND (
              now() >= u.code_expires_at OR u.code_attempts >= %(attempts)s
              OR coalesce(u.code_id IN (w.newest, w.older), false)
          ) AND (
              u.old_code_id IS NULL OR now() >= u.old_code_expires_at OR u.old_code_attempts >= %(attempts)s
              OR coalesce(u.old_code_id IN (w.newest, w.older), false)
          )
      END
    RETURNING u.id, u.activated_at, greatest(
        CASE WHEN now() < u.code_expires_at THEN %(attempts)s - u.code_attempts ELSE 0 END,
        CASE WHEN now() < u.old_code_expires_at THEN %(attempts)s - u.old_code_attempts ELSE 0 END
    ) AS attempts_left
), counted AS (
    INSERT INTO business_counts AS b (day, worker, activations)
    SELECT (now() AT TIME ZONE 'UTC')::date, %(worker)s, count(*) FROM tried WHERE activated_at IS NOT NULL
    HAVING count(*) > 0
    ON CONFLICT (day, worker) DO UPDATE SET activations = b.activations + EXCLUDED.activations
)
SELECT coalesce(tried.activated_at, mine.activated_at), tried.attempts_left
FROM wanted w
LEFT JOIN tried ON tried.id = w.account
LEFT JOIN users mine ON mine.id = w.account AND mine.activated_by = w.redeem_id
ORDER BY w.place
"""
REDEEM: Final = (
    """
WITH locked AS MATERIALIZED (
    SELECT id FROM users WHERE id = ANY(%(accounts)s) ORDER BY email_key FOR NO KEY UPDATE
)"""
    + REDEEM_LOCKED
)

# Race: two resends at once. The budget lies in the row that both update, so the second one sees the first one's code.
# The code before stays alive until the new mail is accepted, which takes it away; so where there still is one, the
# newest code's mail has not been accepted, and it is the newest that goes.
ISSUE: Final = """
WITH wanted AS (
    SELECT * FROM unnest(
        %(accounts)s::uuid[], %(hashes)s::text[], %(codes)s::text[], %(mails)s::uuid[], %(locales)s::text[],
        %(traces)s::text[]
    ) WITH ORDINALITY AS w (account, password_hash, code_id, mail_id, locale, traceparent, place)
), locked AS MATERIALIZED (
    SELECT id FROM users WHERE id = ANY(%(accounts)s) ORDER BY email_key FOR NO KEY UPDATE
), issued AS (
    UPDATE users u SET
        superseded = with_superseded(u.superseded, CASE WHEN u.old_code_id IS NOT NULL THEN u.code_id END),
        old_code_id = coalesce(u.old_code_id, u.code_id),
        old_code_expires_at = coalesce(u.old_code_expires_at, u.code_expires_at),
        old_code_attempts = coalesce(u.old_code_attempts, u.code_attempts),
        code_id = w.code_id, code_expires_at = now() + make_interval(secs => %(max_age)s), code_attempts = 0,
        code_mail = 'owed', code_accepted_at = NULL, locale = coalesce(w.locale, u.locale),
        codes_issued = codes_of_a_day(u.codes_issued, now()) || now()
    FROM locked JOIN wanted w ON w.account = locked.id
    WHERE u.id = locked.id AND u.password_hash = w.password_hash AND u.activated_at IS NULL
      AND u.code_id <> w.code_id AND codes_free_at(u.codes_issued, %(limits)s, %(seconds)s) <= now()
    RETURNING u.id, u.locale, u.codes_issued
), withdrawn AS (
    UPDATE mails m SET state = 'dead', reason = 'superseded'
    FROM issued WHERE m.user_id = issued.id AND m.state = 'queued'
), owed AS (
    INSERT INTO mails (id, user_id, code_id, locale, traceparent)
    SELECT w.mail_id, issued.id, w.code_id, issued.locale, w.traceparent
    FROM issued JOIN wanted w ON w.account = issued.id
), counted AS (
    INSERT INTO business_counts AS b (day, worker, resends)
    SELECT (now() AT TIME ZONE 'UTC')::date, %(worker)s, count(*) FROM issued HAVING count(*) > 0
    ON CONFLICT (day, worker) DO UPDATE SET resends = b.resends + EXCLUDED.resends
)
SELECT now_issued.id,
       extract(epoch FROM codes_free_at(now_issued.codes_issued, %(limits)s, %(seconds)s) - now())::float8,
       codes_left_today(now_issued.codes_issued, %(limits)s, %(seconds)s, now())
FROM wanted w
LEFT JOIN (
    SELECT id, codes_issued FROM issued
    UNION ALL SELECT u.id, u.codes_issued FROM users u JOIN wanted w ON w.account = u.id AND w.code_id = u.code_id
) AS now_issued ON now_issued.id = w.account
ORDER BY w.place
"""


@dataclass(frozen=True, slots=True)
class CodePolicy:
    """What the statements need to know of the settings; seconds, except where the name says otherwise."""

    max_age: int
    ttl: int
    attempts: int
    budget: tuple[Rule, ...]
    cooldown: int

    @classmethod
    def of(cls, settings: Settings) -> CodePolicy:
        """Take from the settings what the statements need."""
        return cls(
            max_age=settings.code_max_age_seconds,
            ttl=settings.code_ttl_seconds,
            attempts=settings.code_attempts,
            budget=settings.code_limits,
            cooldown=settings.resend_cooldown_seconds,
        )

    def windows(self, *, cooldown: bool) -> dict[str, list[int]]:
        """Return the budget as two arrays; the cool-down between two codes is a window of one."""
        rules = [(rule.limit, rule.seconds) for rule in self.budget]
        if cooldown and self.cooldown:
            rules.append((1, self.cooldown))
        return {"limits": [limit for limit, _ in rules], "seconds": [seconds for _, seconds in rules]}


class PostgresCodes:
    """The Codes port; `worker` names this process in the business counters."""

    redeeming: ClassVar[LiteralString] = REDEEM
    issuing: ClassVar[LiteralString] = ISSUE

    def __init__(self, postgres: Postgres, policy: CodePolicy, worker: str) -> None:
        self._postgres = postgres
        self._policy = policy
        self._worker = worker

    async def redeem(self, tries: Sequence[Redemption]) -> list[Redeemed | Missed | None]:
        """Decide each try."""
        parameters = {
            "accounts": [one.account for one in tries],
            "hashes": [one.password_hash.decode() for one in tries],
            "newest": [str(one.live[0]) if one.live else None for one in tries],
            "older": [str(one.live[1]) if len(one.live) > 1 else None for one in tries],
            "hits": [str(one.hit) if one.hit else None for one in tries],
            "redeems": [one.redeem_id for one in tries],
            "attempts": self._policy.attempts,
            "worker": self._worker,
        }
        return [_redeemed(*row) for row in await self._postgres.run(self.redeeming, parameters)]

    async def issue(self, codes: Sequence[NewCode]) -> list[Resent | None]:
        """Give each pending account a new code within its budget and cool-down."""
        parameters = {
            "accounts": [code.account for code in codes],
            "hashes": [code.password_hash.decode() for code in codes],
            "codes": [str(code.code_id) for code in codes],
            "mails": [code.mail_id for code in codes],
            "locales": [code.locale for code in codes],
            "traces": [code.traceparent for code in codes],
            **self._rules(),
        }
        rows = await self._postgres.run(self.issuing, parameters)
        return [
            Resent(code.mail_id, max(0.0, resend_in), left) if issued else None
            for code, (issued, resend_in, left) in zip(codes, rows, strict=True)
        ]

    def _rules(self) -> dict[str, object]:
        windows = self._policy.windows(cooldown=True)
        return {"max_age": self._policy.max_age, "worker": self._worker, **windows}


def _redeemed(activated_at: datetime | None, attempts_left: int | None) -> Redeemed | Missed | None:
    if activated_at is not None:
        return Redeemed(activated_at)
    return None if attempts_left is None else Missed(attempts_left)
