from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import anyio

from actors.delivery import Delivery, Outcome
from actors.domain.code import Keyring
from actors.domain.mail import Deferred, MailState, Rejected
from actors.kit.mailbox import AnswerLost
from actors.ports import StoreUnavailable
from tests.fakes.outbox import MemoryOutbox, ScriptedPostman

if TYPE_CHECKING:
    from actors.domain.code import CodeId
    from actors.domain.mail import ClaimedMail

KEYRING = Keyring({"k1": b"1" * 32})
FRESH = UUID(int=7)


def delivery(outbox: MemoryOutbox, postman: ScriptedPostman) -> Delivery:
    """Build the delivery under test, without jitter."""
    return Delivery(outbox, postman, KEYRING, code_ttl_seconds=60, chance=lambda: 0.0, new_number=lambda: FRESH)


def code_id() -> CodeId:
    """Name a new code."""
    return KEYRING.code_id(uuid4())


async def test_a_mail_with_enough_life_leaves_with_its_own_code() -> None:
    """The code sent is the one that the account's code id derives, and the outbox says accepted."""
    outbox, postman = MemoryOutbox(), ScriptedPostman()
    row = outbox.owe(code_id())
    [mail] = await outbox.claim([row.id])
    assert mail.code_id is not None
    delivered = await delivery(outbox, postman).deliver(mail)
    assert delivered.outcome is Outcome.ACCEPTED
    assert postman.taken == [(mail, KEYRING.code(mail.account, mail.code_id))]
    assert row.state is MailState.ACCEPTED


async def test_a_code_with_less_life_than_its_ttl_is_replaced_before_it_leaves() -> None:
    """No mail leaves with less than the TTL left of the cap: another code id is written and sent."""
    outbox, postman = MemoryOutbox(), ScriptedPostman()
    row = outbox.owe(code_id(), age=841)
    [mail] = await outbox.claim([row.id])
    await delivery(outbox, postman).deliver(mail)
    [(sent, code)] = postman.taken
    assert row.code_id == sent.code_id == KEYRING.code_id(FRESH)
    assert code == KEYRING.code(mail.account, KEYRING.code_id(FRESH))


async def test_a_code_with_exactly_its_ttl_left_is_kept() -> None:
    """The boundary belongs to the code that is there."""
    outbox, postman = MemoryOutbox(), ScriptedPostman()
    row = outbox.owe(code_id())
    [mail] = await outbox.claim([row.id])
    await delivery(outbox, postman).deliver(replace(mail, life_left=60.0))
    assert row.code_id == mail.code_id


async def test_a_mail_that_nobody_needs_is_dropped_without_a_word() -> None:
    """A code that was redeemed, superseded or given up while its mail waited is never sent."""
    outbox, postman = MemoryOutbox(), ScriptedPostman()
    row = outbox.owe(code_id(), age=890)
    [mail] = await outbox.claim([row.id])
    row.needed = False
    delivered = await delivery(outbox, postman).deliver(mail)
    assert delivered.outcome is Outcome.NEEDLESS
    assert postman.taken == []


async def test_a_code_whose_key_was_removed_is_replaced() -> None:
    """A code that could not be redeemed is not sent; one under the signing key is."""
    outbox, postman = MemoryOutbox(), ScriptedPostman()
    row = outbox.owe(Keyring({"gone": b"0" * 32}).code_id(uuid4()))
    [mail] = await outbox.claim([row.id])
    delivered = await delivery(outbox, postman).deliver(mail)
    assert delivered.outcome is Outcome.ACCEPTED
    assert row.code_id == KEYRING.code_id(FRESH)


async def test_a_notice_carries_no_code() -> None:
    """The owner of a taken address is told without a code, however long the notice has waited."""
    outbox, postman = MemoryOutbox(), ScriptedPostman()
    row = outbox.owe(age=5000)
    [mail] = await outbox.claim([row.id])
    await delivery(outbox, postman).deliver(mail)
    assert postman.taken == [(mail, None)]


async def test_a_refused_mail_is_buried_with_its_reason() -> None:
    """A rejection is final."""

    async def refuse(_: ClaimedMail) -> None:
        raise Rejected("550 5.1.1 at RCPT")

    outbox, postman = MemoryOutbox(), ScriptedPostman([refuse])
    row = outbox.owe(code_id())
    [mail] = await outbox.claim([row.id])
    delivered = await delivery(outbox, postman).deliver(mail)
    assert (delivered.outcome, row.state, row.reason) == (Outcome.DEAD, MailState.DEAD, "550 5.1.1 at RCPT")


async def test_a_deferred_mail_is_due_again_after_the_back_off_of_its_attempt(autojump_clock: object) -> None:
    """Attempts wait 1, 2, 4, 8, 15, then 30 s, and each carries the same code."""
    _ = autojump_clock

    async def defer(_: ClaimedMail) -> None:
        raise Deferred("451 at RCPT")

    outbox, postman = MemoryOutbox(), ScriptedPostman([defer] * 7)
    row = outbox.owe(code_id())
    waits = []
    for _attempt in range(7):
        [mail] = await outbox.claim([row.id])
        await delivery(outbox, postman).deliver(mail)
        waits.append(round(row.due_at - anyio.current_time(), 3))
        await anyio.sleep(waits[-1])
    assert waits == [1, 2, 4, 8, 15, 30, 30]
    assert row.state is MailState.QUEUED


async def test_the_wait_that_a_provider_asks_for_is_kept_within_reason() -> None:
    """A longer Retry-After replaces the back-off, up to a quarter of an hour."""

    async def defer(_: ClaimedMail) -> None:
        raise Deferred("429", retry_after=10_000)

    outbox, postman = MemoryOutbox(), ScriptedPostman([defer])
    row = outbox.owe(code_id())
    [mail] = await outbox.claim([row.id])
    await delivery(outbox, postman).deliver(mail)
    assert 890 < row.due_at - anyio.current_time() <= 900


async def test_the_lease_outlives_a_send_that_stalls(autojump_clock: object) -> None:
    """A server that takes a minute to answer keeps the mail with this worker: nobody else can claim it meanwhile."""
    _ = autojump_clock
    rivals: list[list[ClaimedMail]] = []

    async def stall(mail: ClaimedMail) -> None:
        for _second in range(59):
            await anyio.sleep(1)
            rivals.append(await outbox.claim([mail.id]))

    outbox, postman = MemoryOutbox(), ScriptedPostman([stall])
    row = outbox.owe(code_id())
    [mail] = await outbox.claim([row.id])
    delivered = await delivery(outbox, postman).deliver(mail)
    assert delivered.outcome is Outcome.ACCEPTED
    assert rivals == [[]] * 59
    assert row.state is MailState.ACCEPTED


async def test_a_send_ends_when_its_claim_is_lost(autojump_clock: object) -> None:
    """A worker whose mail was claimed by another stops sending it and writes nothing."""
    _ = autojump_clock

    async def stall(_: ClaimedMail) -> None:
        row.fence += 1
        await anyio.sleep(3600)

    outbox, postman = MemoryOutbox(), ScriptedPostman([stall])
    row = outbox.owe(code_id())
    [mail] = await outbox.claim([row.id])
    began = anyio.current_time()
    delivered = await delivery(outbox, postman).deliver(mail)
    assert delivered.outcome is Outcome.LOST
    assert anyio.current_time() - began < 15
    assert (postman.taken, row.state) == ([], MailState.SENDING)


async def test_an_acceptance_is_written_once_the_database_is_back(autojump_clock: object) -> None:
    """The server has the mail, so it is not sent again: the outcome is written until the database hears it."""
    _ = autojump_clock

    async def lose_the_database(_: ClaimedMail) -> None:
        outbox.failures += [AnswerLost(), *(StoreUnavailable() for _ in range(5))]

    outbox, postman = MemoryOutbox(), ScriptedPostman([lose_the_database])
    row = outbox.owe(code_id())
    [mail] = await outbox.claim([row.id])
    delivered = await delivery(outbox, postman).deliver(mail)
    assert delivered.outcome is Outcome.ACCEPTED
    assert (len(postman.taken), row.state) == (1, MailState.ACCEPTED)


async def test_a_database_that_stays_away_leaves_the_mail_to_its_lease(autojump_clock: object) -> None:
    """After a minute the outcome is given up; the mail is claimed anew and carries the same code."""
    _ = autojump_clock

    async def lose_the_database(_: ClaimedMail) -> None:
        outbox.failures += [StoreUnavailable() for _ in range(1000)]

    outbox, postman = MemoryOutbox(), ScriptedPostman([lose_the_database])
    row = outbox.owe(code_id())
    [mail] = await outbox.claim([row.id])
    delivered = await delivery(outbox, postman).deliver(mail)
    assert delivered.outcome is Outcome.UNSETTLED
    outbox.failures.clear()
    [again] = await outbox.claim([row.id])
    await delivery(outbox, postman).deliver(again)
    assert postman.taken[0][1] == postman.taken[1][1]


async def test_a_mail_that_breaks_the_program_is_deferred_and_told() -> None:
    """An unforeseen error names its class only, which cannot hold an address."""

    async def crash(_: ClaimedMail) -> None:
        raise ZeroDivisionError("ada@example.com")

    outbox, postman = MemoryOutbox(), ScriptedPostman([crash])
    row = outbox.owe(code_id())
    [mail] = await outbox.claim([row.id])
    delivered = await delivery(outbox, postman).deliver(mail)
    assert (delivered.outcome, row.reason) == (Outcome.DEFERRED, "internal ZeroDivisionError")
    assert isinstance(delivered.error, ZeroDivisionError)
    assert "ada@" not in repr(delivered)


async def test_a_lease_that_could_not_be_renewed_once_is_renewed_the_next_time(autojump_clock: object) -> None:
    """The database may be back before the lease ends: the send goes on."""
    _ = autojump_clock

    class Absent(MemoryOutbox):
        missed = 0

        async def extend(self, mail: ClaimedMail) -> bool:
            if self.missed == 0:
                self.missed += 1
                raise StoreUnavailable
            return await super().extend(mail)

    async def stall(_: ClaimedMail) -> None:
        await anyio.sleep(12)

    outbox, postman = Absent(), ScriptedPostman([stall])
    row = outbox.owe(code_id())
    [mail] = await outbox.claim([row.id])
    delivered = await delivery(outbox, postman).deliver(mail)
    assert (delivered.outcome, row.state, outbox.missed) == (Outcome.ACCEPTED, MailState.ACCEPTED, 1)


async def test_an_acceptance_whose_claim_is_lost_is_somebody_elses_to_write() -> None:
    """The mail left, and another worker has it by now: it will say when the minute starts."""

    async def overtaken(_: ClaimedMail) -> None:
        row.fence += 1

    outbox, postman = MemoryOutbox(), ScriptedPostman([overtaken])
    row = outbox.owe(code_id())
    [mail] = await outbox.claim([row.id])
    delivered = await delivery(outbox, postman).deliver(mail)
    assert (delivered.outcome, row.state) == (Outcome.LOST, MailState.SENDING)
