"""Idempotency keys in Postgres, as keyed digests, bound by the transaction that registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from actors.ports import KeyTaken, Registered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.ports import IdempotencyClaim
    from service.adapters.postgres import Postgres

CLAIM_SECONDS = 3  # a repeat waits so long for a process that died; one that lives renews its claims every second
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
# Keys are locked in their order, as by a batch of registrations.
RENEW: Final = """
WITH held AS (
    SELECT k.digest FROM idempotency_keys k
    JOIN unnest(%(digests)s::bytea[], %(claims)s::uuid[]) AS c (digest, claim) USING (digest, claim)
    WHERE k.registration_id IS NULL ORDER BY k.digest FOR UPDATE OF k
)
UPDATE idempotency_keys k SET claimed_until = now() + make_interval(secs => %(seconds)s)
FROM held WHERE k.digest = held.digest
"""
RELEASE: Final = """
DELETE FROM idempotency_keys WHERE digest = %(digest)s AND claim = %(claim)s AND registration_id IS NULL RETURNING 1
"""


class PostgresIdempotencyKeys:
    """The IdempotencyKeys port."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def claim(self, claim: IdempotencyClaim, body_digest: bytes) -> KeyTaken | None:
        """Take the key for some seconds; None means that it is the caller's now."""
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

    async def renew(self, claims: Sequence[IdempotencyClaim]) -> None:
        """Keep the keys for as long again; one that somebody else has taken over stays theirs."""
        parameters = {
            "digests": [claim.digest for claim in claims],
            "claims": [claim.claim for claim in claims],
            "seconds": CLAIM_SECONDS,
        }
        await self._postgres.run(RENEW, parameters)

    async def release(self, claim: IdempotencyClaim) -> bool:
        """Give an unbound key back; a bound one stays. False when it was not, or no longer, the caller's to give."""
        return bool(await self._postgres.run(RELEASE, {"digest": claim.digest, "claim": claim.claim}))
