"""Idempotency keys in Postgres, as keyed digests, bound by the transaction that registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from actors.ports import KeyTaken, Registered

if TYPE_CHECKING:
    from actors.ports import IdempotencyClaim
    from service.adapters.postgres import Postgres

CLAIM_SECONDS = 15  # a claim whose process died: longer than any registration takes, with its wait for a hash
KEPT_HOURS = 24

# Race: a hundred repeats at once. One of them gets the row; the others see whose it is and what it is bound to.
CLAIM: Final = """
WITH mine AS (
    INSERT INTO idempotency_keys AS k (digest, body_digest, claim, claimed_until, expires_at)
    VALUES (%(digest)s, %(body)s, %(claim)s, now() + make_interval(secs => %(seconds)s),
            now() + make_interval(hours => %(hours)s))
    ON CONFLICT (digest) DO UPDATE SET
        body_digest = EXCLUDED.body_digest, claim = EXCLUDED.claim, claimed_until = EXCLUDED.claimed_until,
        expires_at = EXCLUDED.expires_at, user_id = NULL, registration_id = NULL, created_at = NULL
    WHERE k.expires_at <= now() OR (k.registration_id IS NULL AND k.claimed_until <= now())
       OR (k.registration_id IS NULL AND k.claim = EXCLUDED.claim)
    RETURNING digest
)
SELECT EXISTS (SELECT FROM mine), k.body_digest = %(body)s, k.user_id, k.registration_id, k.created_at
FROM (SELECT 1) AS one LEFT JOIN idempotency_keys k ON k.digest = %(digest)s
"""
RELEASE: Final = (
    "DELETE FROM idempotency_keys WHERE digest = %(digest)s AND claim = %(claim)s AND registration_id IS NULL"
)
FORGET: Final = "DELETE FROM idempotency_keys WHERE expires_at <= now()"


class PostgresIdempotencyKeys:
    """The IdempotencyKeys port."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def claim(self, claim: IdempotencyClaim, body_digest: bytes) -> KeyTaken | None:
        """Take the key for a while; None means that it is the caller's now."""
        parameters = {
            "digest": claim.digest,
            "claim": claim.claim,
            "body": body_digest,
            "seconds": CLAIM_SECONDS,
            "hours": KEPT_HOURS,
        }
        mine, same_body, user_id, registration, created_at = (await self._postgres.run(CLAIM, parameters))[0]
        if mine:
            return None
        if registration is None:  # it runs, or it was taken within this very moment
            return KeyTaken(same_body is not False, None)
        return KeyTaken(same_body, Registered(user_id, registration, created_at))

    async def release(self, claim: IdempotencyClaim) -> None:
        """Give an unbound key back; a bound one stays."""
        await self._postgres.run(RELEASE, {"digest": claim.digest, "claim": claim.claim})

    async def forget(self) -> None:
        """Delete the keys whose day is over."""
        await self._postgres.run(FORGET)
