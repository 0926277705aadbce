"""Idempotency keys: the first request with a key does the work, its repeats hear the same answer.

The key follows the IETF draft of the Idempotency-Key header field, narrowed to what fits a log-safe token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import anyio

from actors.domain.errors import IdempotencyKeyInvalid, IdempotencyKeyReused, RequestInProgress
from actors.kit.mailbox import AnswerLost
from actors.ports import IdempotencyClaim, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from actors.domain.code import Keyring
    from actors.domain.email_address import EmailAddress
    from actors.domain.password import Password
    from actors.forms import Form
    from actors.ports import IdempotencyKeys, Registered

LONGEST_KEY = 64
WAIT_SECONDS = 5.0  # for the first request with the same key
LOOK_SECONDS = 0.1


class Idempotency:
    """Runs a registration at most once for a key and an address."""

    def __init__(self, keys: IdempotencyKeys, keyring: Keyring) -> None:
        self._keys = keys
        self._keyring = keyring

    async def once(
        self,
        form: Form,
        address: EmailAddress,
        password: Password,
        work: Callable[[IdempotencyClaim | None], Awaitable[Registered]],
    ) -> Registered:
        """Return what `work` returns, or what it returned for an earlier request with the same key and body.

        Raises IdempotencyKeyReused for another body, RequestInProgress when the first one takes too long,
        StoreUnavailable when the key could not be had. A key whose work was refused is free again; one whose outcome
        is unknown stays taken until it is known.
        """
        if form.idempotency_key is None:
            return await work(None)
        claim = self._claim(form.idempotency_key, address)
        body = self._keyring.idempotency_digest(form.email, password.secret.decode(), form.locale)
        earlier = await self._earlier(claim, body)
        if earlier is not None:
            return earlier
        try:
            return await work(claim)
        except AnswerLost:
            raise
        except Exception:
            await self._release(claim)
            raise

    def _claim(self, key: str, address: EmailAddress) -> IdempotencyClaim:
        if not (0 < len(key) <= LONGEST_KEY and all("!" <= character <= "~" for character in key)):
            raise IdempotencyKeyInvalid
        return IdempotencyClaim(self._keyring.idempotency_digest(key, address.key), uuid4())

    async def _earlier(self, claim: IdempotencyClaim, body: bytes) -> Registered | None:
        with anyio.move_on_after(WAIT_SECONDS):
            while True:
                try:
                    taken = await self._keys.claim(claim, body)
                except AnswerLost:  # the claim may stand until it ends by itself; nothing else was done
                    raise StoreUnavailable from None
                if taken is None:
                    return None
                if taken.registered is not None:
                    if not taken.same_body:
                        raise IdempotencyKeyReused
                    return taken.registered
                await anyio.sleep(LOOK_SECONDS)
        raise RequestInProgress(1)

    async def _release(self, claim: IdempotencyClaim) -> None:
        try:
            await self._keys.release(claim)
        except (StoreUnavailable, AnswerLost):
            return  # the claim ends by itself
