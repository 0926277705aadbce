"""What the mail worker does with owed mails: claim a batch, send it over kept connections, write the outcomes together.

A mail is sent at least once: this process may die between the mail server's acceptance and the write, and the repeat
carries the same code under the same Message-ID. A mail whose claim is lost belongs to another worker and is let go.

While the mail server fails, one attempt at a time tries for all mails. See `_ServerState`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol

import anyio

from actors.domain.mail import Deferred, MailKind, Outcome, Rejected, Result, ServerUnavailable, backoff
from actors.kit.mailbox import MachineError
from actors.ports import NewMail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from uuid import UUID

    from actors.domain.code import Keyring
    from actors.domain.mail import ClaimedMail
    from actors.ports import MailQueue, Transport

IN_HAND = 16  # claimed at once: what dies with this process is sent again, one by one
SENDS = 8  # at once: mail servers refuse more than ten or twenty connections from one client
SWEEP_SECONDS = 1.0  # between claims without a wake-up; Redis only shortens the wait
GATHER_SECONDS = 0.02  # from one claim, and one write of outcomes, to the next: under load each serves several mails
RENEW_SECONDS = 5.0  # a third of the lease: two renewals may fail before the claim is lost
LONGEST_WAIT_SECONDS = 900.0  # what a provider may ask for: nobody waits for a code much longer
SHORTEST_TRY_SECONDS, LONGEST_TRY_SECONDS = 1.0, 60.0  # between attempts at a failing server
TRY_SHARE = 1 / 30  # of the time that the server has been failing: mails leave soon after a short outage
WARNING_SECONDS = 60.0  # between warnings while the mail server fails


class DeliveryLog(Protocol):
    """Where deliveries are reported. Nothing it is given holds an address or a code."""

    def delivered(self, mail: ClaimedMail, result: Result) -> None:
        """Report what became of a mail."""

    def server(self, failure: str | None, seconds: float) -> None:
        """Report why no mail can be sent, 0 seconds after it began and once a minute; None when it is over."""

    def queue(self, failure: MachineError | None) -> None:
        """Report that the mail queue cannot be asked, once; None when it answers again."""


class _ServerState:
    """Whether the mail server works, by its replies.

    It fails when it cannot be reached, refuses our name, log-in or sender, or gives the same refusal to recipients of
    two domains with no acceptance between. After the former it works again once a mail gets as far as its recipient,
    after the latter once a mail is accepted.
    """

    def __init__(self, log: DeliveryLog, chance: Callable[[], float]) -> None:
        self._log = log
        self._chance = chance
        self._since: float | None = None
        self._refuses_all = False
        self._refused: dict[str, str] = {}  # reason -> the first domain that got it, since the last acceptance
        self._reason = ""
        self._next_warning = 0.0
        self.next_try = 0.0

    @property
    def failing(self) -> bool:
        """Whether one attempt at a time tries for all mails."""
        return self._since is not None

    def unavailable(self, reason: str) -> None:
        """Note a failure before the recipient was named."""
        self._refuses_all = False
        self._fail(reason)

    def refused(self, reason: str, domain: str) -> bool:
        """Note the refusal of one mail; return whether the server refuses all mails."""
        self.reached()
        if self.failing or self._refused.setdefault(reason, domain) != domain:
            self._refuses_all = True
            self._fail(reason)
        return self.failing

    def reached(self) -> None:
        """Note that the server looked at a recipient."""
        if not self._refuses_all:
            self._work()

    def accepted(self) -> None:
        """Note an acceptance."""
        self._refused.clear()
        self._work()

    def attempted(self) -> None:
        """Choose when to try again, after an attempt of any outcome."""
        if self._since is not None:
            now = anyio.current_time()
            seconds = min(max((now - self._since) * TRY_SHARE, SHORTEST_TRY_SECONDS), LONGEST_TRY_SECONDS)
            self.next_try = now + seconds * (1 - self._chance() / 4)

    def warn(self) -> float:
        """Report a failure that lasts, once a minute; return when to look again."""
        if self._since is None:
            return math.inf
        now = anyio.current_time()
        if now >= self._next_warning:
            self._next_warning = now + WARNING_SECONDS
            self._log.server(self._reason, now - self._since)
        return self._next_warning

    def _fail(self, reason: str) -> None:
        self._reason = reason
        if self._since is None:
            self._since = self._next_warning = anyio.current_time()
            self.warn()

    def _work(self) -> None:
        self._refuses_all = False
        self.next_try = 0.0
        if self._since is not None:
            self._log.server(None, anyio.current_time() - self._since)
            self._since = None


class _InHand:
    """A claimed mail until its outcome is written; `trial` tries for all while the server fails."""

    def __init__(self, mail: ClaimedMail, *, trial: bool) -> None:
        self.mail = mail
        self.trial = trial
        self.claimed_at = anyio.current_time()
        self.sending = anyio.CancelScope()
        self.result: Result | None = None


@dataclass(eq=False)
class Delivery:
    """Delivers owed mails, several at once, until closed.

    A code mail with less than `life_needed` seconds of its cap left is reissued before it leaves. `chance` gives
    numbers in [0, 1) that spread retries. `trace` is entered around each send and sees its errors.
    """

    queue: MailQueue
    transport: Transport
    keyring: Keyring
    log: DeliveryLog
    life_needed: float
    new_id: Callable[[], UUID]
    chance: Callable[[], float]
    trace: Callable[[ClaimedMail], AbstractContextManager[object]]

    def __post_init__(self) -> None:
        self._server = _ServerState(self.log, self.chance)
        self._in_hand: dict[_InHand, None] = {}  # in the order of their claims
        self._connections = anyio.Semaphore(SENDS)
        self._changed = anyio.Event()
        self._woken = True  # what is owed at the start leaves at once
        self._more = False  # whether the last claim took as many as it could
        self._next_sweep = self._gathered = 0.0
        self._queue_retry = 0.0
        self._queue_away = self._closing = False
        self._one_by_one = False  # while there are mails that must be alone in hand

    @property
    def in_hand(self) -> int:
        """How many mails are claimed and not settled."""
        return len(self._in_hand)

    def wake(self) -> None:
        """Claim what is due as soon as there is room."""
        self._woken = True
        self._change()

    def close(self) -> None:
        """Claim nothing more; `run` returns when the sends that run have ended and every outcome is written."""
        self._closing = True
        self._change()

    async def run(self) -> None:
        """Deliver until closed. Cancelled, it abandons what is in hand: the leases end and other workers claim it."""
        async with anyio.create_task_group() as helpers:
            helpers.start_soon(self._renew_leases)
            helpers.start_soon(self._write_outcomes)
            async with anyio.create_task_group() as sends:
                while not self._closing:
                    until = min(self._next_claim(), self._server.warn())
                    if self._next_claim() > anyio.current_time():
                        with anyio.move_on_after(until - anyio.current_time()):
                            await self._changed.wait()
                        continue
                    for one in await self._claim():
                        sends.start_soon(self._deliver, one)
            while self._in_hand:
                await self._changed.wait()
            helpers.cancel_scope.cancel()

    def _change(self) -> None:
        """Let everything that waits for a change look again."""
        self._changed.set()
        self._changed = anyio.Event()

    def _room(self) -> int:
        """Return how many mails may be claimed; none beside one that must be alone or that tries for all."""
        return (1 if self._server.failing or self._one_by_one else IN_HAND) - len(self._in_hand)

    def _next_claim(self) -> float:
        # After an outage of the queue the leases of what is in hand have ended: renew them before others are claimed.
        if self._room() <= 0 or (self._queue_away and self._in_hand):
            return math.inf
        at_once = self._more and self._room() >= SENDS
        wanted = (0.0 if at_once else self._gathered) if self._woken else self._next_sweep
        return max(wanted, self._server.next_try, self._queue_retry)

    async def _claim(self) -> list[_InHand]:
        """Claim as many due mails as there is room for."""
        room, trial = self._room(), self._server.failing
        self._woken = False
        try:
            mails = await self.queue.claim(room)
        except MachineError as error:
            self._note_queue(error)
            self._queue_retry = anyio.current_time() + max(SWEEP_SECONDS, error.retry_after)
            return []
        self._note_queue(None)
        self._more = len(mails) == room
        self._woken = self._woken or self._more
        self._gathered = anyio.current_time() + GATHER_SECONDS
        self._next_sweep = anyio.current_time() + SWEEP_SECONDS * (0.75 + self.chance() / 2)
        claimed = [_InHand(mail, trial=trial) for mail in mails]
        self._in_hand.update(dict.fromkeys(claimed))
        self._one_by_one = any(mail.alone for mail in mails)
        for one in claimed:
            if one.mail.alone and len(self._in_hand) > 1:
                one.result = Result(Outcome.PUT_BACK)
        self._change()
        return [one for one in claimed if one.result is None]

    async def _deliver(self, one: _InHand) -> None:
        """Find the result of one mail; without one its claim was lost meanwhile."""
        with one.sending:
            one.result = await self._attempt(one)
        if one.result is None or one.result.outcome is Outcome.NOT_NEEDED:
            self._settle(one, one.result or Result(Outcome.LOST))
        self._change()

    async def _attempt(self, one: _InHand) -> Result:
        async with self._connections:
            if self._closing or (self._server.failing and not one.trial):
                return Result(Outcome.PUT_BACK)
            try:
                if not await self._fresh(one):
                    return Result(Outcome.NOT_NEEDED)
            except MachineError as error:
                self._note_queue(error)
                return Result(Outcome.PUT_BACK)
            result = await self._send(one)
            self._server.attempted()
            return result

    async def _fresh(self, one: _InHand) -> bool:
        """Reissue a code mail that is too old, or whose key was removed; return whether there is a mail to send."""
        mail = one.mail
        life_left = mail.life_left - (anyio.current_time() - one.claimed_at)
        if mail.kind is MailKind.NOTICE or (life_left >= self.life_needed and mail.key_id in self.keyring):
            return True
        new = NewMail(self.new_id(), mail.kind, self.keyring.signing, mail.traceparent)
        reissued = await self.queue.reissue(mail, new)
        if reissued is not None:
            one.mail = reissued
        return reissued is not None

    async def _send(self, one: _InHand) -> Result:
        mail = one.mail
        is_code = mail.kind is MailKind.CODE
        code = self.keyring.code(mail.account, mail.id, mail.key_id) if is_code else None
        try:
            with self.trace(mail):
                await self.transport.send(mail, code)
        except Rejected as error:
            self._server.reached()
            return Result(Outcome.DEAD, error.reason)
        except Deferred as error:
            return self._deferred(one, error)
        except Exception as error:  # noqa: BLE001 - one mail that breaks the program must not stop the others
            return Result(Outcome.DEFERRED, f"internal {type(error).__name__}", self._backoff(mail), error)
        self._server.accepted()
        return Result(Outcome.ACCEPTED)

    def _deferred(self, one: _InHand, error: Deferred) -> Result:
        """Decide when the mail is due again: after its back-off, or behind all others when the server fails."""
        asked = min(error.retry_after or 0.0, LONGEST_WAIT_SECONDS)
        if isinstance(error, ServerUnavailable):
            if self._server.failing and not one.trial:
                return Result(Outcome.PUT_BACK)  # it left before the failure was known
            self._server.unavailable(error.reason)
        elif not self._server.refused(error.reason, one.mail.recipient.rpartition("@")[2].lower()):
            asked = max(asked, self._backoff(one.mail))
        return Result(Outcome.DEFERRED, error.reason, asked)

    def _backoff(self, mail: ClaimedMail) -> float:
        return backoff(max(1, mail.tries), self.chance())

    async def _renew_leases(self) -> NoReturn:
        """Renew the leases of all mails in hand; stop the sends whose claims are lost."""
        while True:
            await anyio.sleep(SWEEP_SECONDS if self._queue_away else RENEW_SECONDS)
            renewed = {one: one.mail for one in self._in_hand}
            if not renewed:
                continue
            try:
                kept = await self.queue.extend(list(renewed.values()))
            except MachineError as error:
                self._note_queue(error)
                continue
            self._note_queue(None)
            for one, mail in renewed.items():
                if mail.id not in kept and one.mail is mail:  # not reissued meanwhile
                    one.sending.cancel()

    async def _write_outcomes(self) -> NoReturn:
        """Write the outcomes that are there, one statement in flight, again while the queue is away."""
        while True:
            done = [(one, one.result) for one in self._in_hand if one.result is not None]
            if not done:
                await self._changed.wait()
                continue
            try:
                await self._write(done)
                await self._gather_outcomes()
            except MachineError as error:
                self._note_queue(error)
                await anyio.sleep(max(0.1, error.retry_after))  # the outcome is kept, and written when that works

    async def _gather_outcomes(self) -> None:
        """Wait for as many outcomes as can come at once, but not for long."""
        with anyio.move_on_after(GATHER_SECONDS):
            while sum(one.result is not None for one in self._in_hand) < SENDS:
                await self._changed.wait()

    async def _write(self, done: Sequence[tuple[_InHand, Result]]) -> None:
        # A statement changes a row once: of two mails of an account the second waits for the next statement.
        accepted = {one.mail.account: one for one, result in reversed(done) if result.outcome is Outcome.ACCEPTED}
        if accepted:
            kept = await self.queue.accepted([one.mail for one in accepted.values()])
            for one in accepted.values():
                self._settle(one, Result(Outcome.ACCEPTED if one.mail.id in kept else Outcome.LOST))
        others = [(one, result) for one, result in done if result.outcome is not Outcome.ACCEPTED]
        if others:
            await self.queue.settle([(one.mail, result) for one, result in others])
            for one, result in others:
                self._settle(one, result)

    def _settle(self, one: _InHand, result: Result) -> None:
        del self._in_hand[one]
        self.log.delivered(one.mail, result)
        self._change()

    def _note_queue(self, failure: MachineError | None) -> None:
        """Report when the queue goes away and when it is back."""
        if self._queue_away != (failure is not None):
            self._queue_away = failure is not None
            self.log.queue(failure)
            self._change()
