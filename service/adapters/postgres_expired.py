"""Deletes what has had its time: idempotency keys, unproven registrations, mails that were settled long ago."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from service.adapters.postgres import Postgres

BATCH = 1000  # rows in one statement: some milliseconds, in which nobody waits for a lock of ours
MAILS_KEPT_DAYS = 30  # accepted or dead: for `mail list` and `mail replay`

# Race: several processes delete at once, and rows are in use meanwhile. Rows in someone's hands are passed over; those
# that were locked here stay where they are, so their place (ctid) names them.
KEYS: Final = """
DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM idempotency_keys WHERE expires_at <= now() LIMIT %(rows)s FOR UPDATE SKIP LOCKED
)) RETURNING 1
"""
REGISTRATIONS: Final = """
DELETE FROM users WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM users WHERE forget_after <= now() AND activated_at IS NULL LIMIT %(rows)s FOR UPDATE SKIP LOCKED
)) RETURNING 1
"""
ADDRESSES: Final = """
DELETE FROM shared_addresses WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM shared_addresses WHERE touched_at <= now() - interval '2 days'
    LIMIT %(rows)s FOR UPDATE SKIP LOCKED
)) RETURNING 1
"""
ACCEPTED: Final = """
DELETE FROM mails WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM mails WHERE state = 'accepted' AND accepted_at < now() - make_interval(days => %(days)s)
    LIMIT %(rows)s FOR UPDATE SKIP LOCKED
)) RETURNING 1
"""
DEAD: Final = """
DELETE FROM mails WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM mails WHERE state = 'dead' AND created_at < now() - make_interval(days => %(days)s)
    LIMIT %(rows)s FOR UPDATE SKIP LOCKED
)) RETURNING 1
"""


async def forget(postgres: Postgres) -> None:
    """Delete all of it, in small bites; raises MachineError with the rest left for the next time."""
    for sql in (KEYS, REGISTRATIONS, ADDRESSES, ACCEPTED, DEAD):
        while len(await postgres.run(sql, {"rows": BATCH, "days": MAILS_KEPT_DAYS})) == BATCH:
            pass
