"""A batch of registrations as both statements that register take it: its rows in SQL, and their parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.ports import NewAccount

# Race: a request that stood still for longer than its claim lasts, and a repeat that has taken its key over. Either of
# them would register, and the loser would hear that the address is taken, where one key has one answer. So a
# registration locks the row of its key first and goes on only while the claim in it is its own; a repeat that wants the
# key waits for that lock and then finds it bound. Both can run at the same time, one of them can register: that is why
# a claim may be short. Keys are locked in their order and before any address, so that no two batches wait in a circle.
WANTED: Final = """asked AS (
    SELECT * FROM unnest(
        %(ids)s::uuid[], %(registrations)s::uuid[], %(keys)s::text[], %(emails)s::text[], %(hashes)s::text[],
        %(locales)s::text[], %(codes)s::text[], %(mails)s::uuid[], %(traces)s::text[], %(digests)s::bytea[],
        %(claims)s::uuid[]
    ) WITH ORDINALITY AS a (
        id, registration_id, email_key, email, password_hash, locale, code_id, mail_id, traceparent, digest, claim,
        place
    )
), held AS MATERIALIZED (
    SELECT a.place FROM idempotency_keys k JOIN asked a ON k.digest = a.digest AND k.claim = a.claim
    ORDER BY k.digest FOR UPDATE OF k
), wanted AS (
    SELECT * FROM asked WHERE digest IS NULL OR place IN (SELECT place FROM held) ORDER BY email_key, place
)"""


def wanted(accounts: Sequence[NewAccount]) -> dict[str, object]:
    """Return the parameters of WANTED."""
    claims = [account.idempotency for account in accounts]
    return {
        "ids": [account.id for account in accounts],
        "registrations": [account.registration for account in accounts],
        "keys": [account.email.key for account in accounts],
        "emails": [account.email.typed for account in accounts],
        "hashes": [account.password_hash.decode() for account in accounts],
        "locales": [account.locale for account in accounts],
        "codes": [str(account.code_id) for account in accounts],
        "mails": [account.mail_id for account in accounts],
        "traces": [account.traceparent for account in accounts],
        "digests": [claim.digest if claim else None for claim in claims],
        "claims": [claim.claim if claim else None for claim in claims],
    }
