"""What has had its time is deleted, however much it is."""

from __future__ import annotations

from typing import Final

import psycopg

from service.adapters.postgres import Postgres
from service.adapters.postgres_expired import BATCH, MAILS_KEPT_DAYS, forget

MANY: Final = 2 * BATCH + 1
PERSON: Final = """
INSERT INTO users (id, email_key, email, password_hash, locale, registration_id, registered_at, code_id,
                   code_expires_at, codes_issued)
SELECT gen_random_uuid(), 'ada@example.com', 'ada@example.com', '', 'en', gen_random_uuid(), now(), 'k.1', now(), '{}'
"""
MAILS: Final = """
INSERT INTO mails (id, user_id, code_id, locale, state, created_at, accepted_at)
SELECT gen_random_uuid(), users.id, 'k.1', 'en', %(state)s, now() - make_interval(days => %(days)s),
       CASE WHEN %(state)s = 'accepted' THEN now() - make_interval(days => %(days)s) END
FROM users, generate_series(1, %(number)s)
"""
KEYS: Final = """
INSERT INTO idempotency_keys (digest, body_digest, claim, claimed_until, expires_at)
SELECT decode(lpad(to_hex(i), 8, '0'), 'hex'), '', gen_random_uuid(), now(), now() + make_interval(secs => %(life)s)
FROM generate_series(%(first)s::int, %(first)s::int + %(number)s::int - 1) AS i
"""


async def test_mails_and_keys_are_deleted_when_their_time_is_over(database_url: str) -> None:
    """Settled mails after thirty days and keys after theirs, more than one batch of each; the others stay."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(PERSON)
        for state, days, number in (
            ("accepted", MAILS_KEPT_DAYS + 1, MANY),
            ("accepted", MAILS_KEPT_DAYS - 1, 1),
            ("dead", MAILS_KEPT_DAYS + 1, 3),
            ("dead", MAILS_KEPT_DAYS - 1, 1),
            ("queued", MAILS_KEPT_DAYS + 1, 1),
        ):
            connection.execute(MAILS, {"state": state, "days": days, "number": number})
        connection.execute(KEYS, {"life": -1, "first": 1, "number": MANY})
        connection.execute(KEYS, {"life": 3600, "first": MANY + 1, "number": 1})
        async with Postgres.open(database_url) as postgres:
            await forget(postgres)
        left = connection.execute("SELECT state FROM mails ORDER BY state").fetchall()
        keys = connection.execute("SELECT count(*) FROM idempotency_keys").fetchone()
    assert [state for (state,) in left] == ["accepted", "dead", "queued"]
    assert keys == (1,)
