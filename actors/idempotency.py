"""Idempotency keys: the first request with a key does the work, its repeats hear the same answer.

The key follows the IETF draft of the Idempotency-Key header field, narrowed to what fits a log-safe token.
"""

from __future__ import annotations

import re
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio

from actors.domain.errors import IdempotencyKeyInvalid, IdempotencyKeyReused, RequestInProgress
from actors.kit.mailbox import AnswerLost, MachineError
from actors.ports import IdempotencyClaim, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import NoReturn

    from actors.domain.code import Keyring
    from actors.domain.email_address import EmailAddress
    from actors.domain.password import Password
    from actors.forms import Form
    from actors.ports import IdempotencyKeys, Registered

KEY = re.compile(r"[!-~]{1,64}")  # visible ASCII
WAIT_SECONDS = 5.0  # for the first request with the same key
LOOK_SECONDS = 0.1
RENEW_SECONDS = 1.0  # a third of a claim: one renewal may fail before a key is lost
RELEASE_SECONDS = 0.5  # between tries to give keys back to a database that is away: its return should find them free
OWED_KEPT = 1024  # of an outage's first moment; what is forgotten ends by itself


class Idempotency:
    """Runs a registration at most once for a key and an address."""

    def __init__(self, keys: IdempotencyKeys, keyring: Keyring) -> None:
        self._keys = keys
        self._keyring = keyring
        self._running: set[IdempotencyClaim] = set()
        self._owed: deque[IdempotencyClaim] = deque(maxlen=OWED_KEPT)
        self._owing = anyio.Event()

    async def renewing(self) -> NoReturn:
        """Run until cancelled, in a task of the owner: keep the keys whose work runs here.

        A process that dies keeps nothing, so the repeat that comes next need not wait for long.
        """
        while True:
            await anyio.sleep(RENEW_SECONDS)
            if self._running:
                with suppress(MachineError):  # a key that is lost by it is missed by the work, or at its return
                    await self._keys.renew(tuple(self._running))

    async def releasing(self) -> NoReturn:
        """Run until cancelled, in a task of the owner: give back the keys that an outage made us keep."""
        while True:
            await self._owing.wait()
            self._owing = anyio.Event()
            while self._owed:
                claim = self._owed.popleft()
                try:
                    await self._keys.release(claim)
                except MachineError:
                    self._owed.appendleft(claim)
                    await anyio.sleep(RELEASE_SECONDS)

    async def once(
        self,
        form: Form,
        address: EmailAddress,
        password: Password,
        work: Callable[[IdempotencyClaim | None], Awaitable[Registered]],
        waiting: Callable[[], None],
    ) -> Registered:
        """Return what `work` returns, or what it returned for an earlier request with the same key and body.

        Raises IdempotencyKeyReused for another body, RequestInProgress when the first one takes too long,
        StoreUnavailable when the key could not be had. A key whose work was refused is free again; one whose outcome
        is unknown stays taken until its claim ends. A request that stood still for so long that a repeat took its key
        over hears what the repeat is told. `waiting` is called by whoever has to wait for an earlier one.
        """
        if form.idempotency_key is None:
            return await work(None)
        claim = self._claim(form.idempotency_key, address)
        body = self._keyring.idempotency_digest(form.email, password.secret.decode(), form.locale)
        while True:
            earlier = await self._earlier(claim, body, waiting)
            if earlier is not None:
                return earlier
            self._running.add(claim)
            try:
                return await work(claim)
            except AnswerLost:
                raise
            except Exception:
                if await self._release(claim):
                    raise
            finally:
                self._running.discard(claim)

    def _claim(self, key: str, address: EmailAddress) -> IdempotencyClaim:
        if not KEY.fullmatch(key):
            raise IdempotencyKeyInvalid
        return IdempotencyClaim(self._keyring.idempotency_digest(key, address.key), uuid4())

    async def _earlier(self, claim: IdempotencyClaim, body: bytes, waiting: Callable[[], None]) -> Registered | None:
        with anyio.move_on_after(WAIT_SECONDS):
            while True:
                try:
                    taken = await self._keys.claim(claim, body)
                except AnswerLost:  # the claim may stand; nothing else was done
                    self._owe(claim)
                    raise StoreUnavailable from None
                if taken is None:
                    return None
                if taken.registered is not None:
                    if not taken.same_body:
                        raise IdempotencyKeyReused
                    return taken.registered
                waiting()
                await anyio.sleep(LOOK_SECONDS)
        raise RequestInProgress(1)

    async def _release(self, claim: IdempotencyClaim) -> bool:
        """Give the key back; False when somebody else has it."""
        try:
            return await self._keys.release(claim)
        except MachineError:
            self._owe(claim)
            return True

    def _owe(self, claim: IdempotencyClaim) -> None:
        self._owed.append(claim)
        self._owing.set()
