"""Deliveries after a mail server's outage: what waited for it is brought forward soon after it is back, by leaps."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import anyio
import pytest

from actors.delivery import HASTENED, LOOK_OUT_SECONDS, UNREACHED_KEPT, Delivery, Outcome
from actors.domain.code import Keyring
from actors.domain.mail import Deferred, MailKind, MailState, Unreached
from actors.ports import StoreUnavailable
from tests.fakes.outbox import MemoryOutbox, ScriptedPostman

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from actors.domain.mail import ClaimedMail
    from tests.fakes.outbox import Row

KEYRING = Keyring({"k1": bytes(32)})


async def away(_: ClaimedMail) -> None:
    """Fail as a send to a server that is away."""
    await anyio.lowlevel.checkpoint()
    raise Unreached("SMTPConnectError at connect")


async def busy(_: ClaimedMail) -> None:
    """Fail as a send to a server that wants to be asked later."""
    await anyio.lowlevel.checkpoint()
    raise Deferred("451 4.7.1 at RCPT")


class Relay:
    """A mail server that can be away, and what waits for it."""

    def __init__(self, outbox: MemoryOutbox | None = None) -> None:
        self.outbox, self.postman = outbox or MemoryOutbox(), ScriptedPostman()
        self.delivery = Delivery(
            self.outbox, self.postman, KEYRING, code_ttl_seconds=60, chance=lambda: 0.0, new_number=lambda: UUID(int=7)
        )

    async def send(
        self, fails: Callable[[ClaimedMail], Awaitable[None]] | None = None, kind: MailKind = MailKind.CODE
    ) -> Row:
        """Deliver a new mail once."""
        row = self.outbox.owe(KEYRING.code_id(uuid4()))
        row.kind = kind
        if fails:
            self.postman.script.append(fails)
        (mail,) = await self.outbox.claim([row.id])
        await self.delivery.deliver(mail)
        return row

    async def due(self) -> list[Row]:
        """Return what is due, in its order, and have it delivered."""
        mails = await self.outbox.claim_due(100)
        for mail in mails:
            assert (await self.delivery.deliver(mail)).outcome is Outcome.ACCEPTED
        return [self.outbox.rows[mail.id] for mail in mails]


async def test_what_could_not_reach_the_server_is_brought_forward_when_it_takes_a_mail() -> None:
    """The longest waiting first, by leaps: each of those that it takes brings others forward."""
    relay = Relay()
    waiting = [await relay.send(away) for _ in range(HASTENED * 3)]
    assert await relay.due() == []
    await relay.send()
    assert await relay.due() == waiting[:HASTENED]
    assert await relay.due() == waiting[HASTENED:]
    assert {row.attempts for row in waiting} == {2}


async def test_what_the_server_put_off_waits_as_long_as_it_was_told() -> None:
    """A greylisted mail does not leave sooner because others are taken."""
    relay = Relay()
    row = await relay.send(busy)
    await relay.send()
    assert await relay.due() == []
    assert row.state is MailState.QUEUED


async def test_a_mail_that_reached_the_server_at_last_is_not_brought_forward_any_more() -> None:
    """What it said then counts."""
    relay = Relay()
    row = await relay.send(away)
    relay.outbox.advance(1)
    (mail,) = await relay.outbox.claim_due(1)
    relay.postman.script.append(busy)
    await relay.delivery.deliver(mail)
    await relay.send()
    assert (await relay.due(), row.state) == ([], MailState.QUEUED)


async def test_a_silent_mail_brings_nothing_forward_and_is_brought_forward_itself(autojump_clock: object) -> None:
    """It says nothing about the server, and a shadow's state moves when an account's does."""
    _ = autojump_clock
    relay = Relay()
    waiting = [await relay.send(away), await relay.send(kind=MailKind.SILENT)]
    waiting += [await relay.send(away) for _ in range(HASTENED)]
    await relay.send()
    assert (await relay.send(kind=MailKind.SILENT)).state is MailState.ACCEPTED
    now = anyio.current_time()
    assert [row for row in waiting if row.due_at <= now] == waiting[:HASTENED]


async def test_a_database_that_goes_away_only_lets_them_wait() -> None:
    """The mail that was taken is taken; the others leave when their wait is over."""

    class Absent(MemoryOutbox):
        async def hasten(self, *_: object) -> None:
            await anyio.lowlevel.checkpoint()
            raise StoreUnavailable

    relay = Relay(Absent())
    row = await relay.send(away)
    assert (await relay.send()).state is MailState.ACCEPTED
    assert await relay.due() == []
    relay.outbox.advance(1)
    assert await relay.due() == [row]


async def test_of_a_long_outage_a_bounded_number_is_remembered() -> None:
    """The rest leaves when its wait is over."""
    relay = Relay()
    for _ in range(UNREACHED_KEPT + 1):
        await relay.send(away)
    hastened = 0
    await relay.send()
    while due := await relay.due():
        hastened += len(due)
    assert hastened == UNREACHED_KEPT


@pytest.mark.parametrize("says", [Unreached("SMTPConnectError at connect"), Deferred("421 4.3.2 at connect")])
async def test_a_server_that_is_back_is_found_soon_and_by_nobodys_attempt(
    autojump_clock: object, says: Deferred
) -> None:
    """Who had to wait for half a minute leaves after a second, without a new mail; one look was for all of them."""
    _ = autojump_clock
    relay = Relay()
    relay.postman.away = says
    waiting = [await relay.send(away) for _ in range(HASTENED)]
    for row in waiting:
        row.due_at = anyio.current_time() + 30
    async with anyio.create_task_group() as group:
        group.start_soon(relay.delivery.look_out)
        await anyio.sleep(10.5)
        assert (relay.postman.looks, await relay.due()) == (10 / LOOK_OUT_SECONDS, [])
        relay.postman.away = None
        await anyio.sleep(LOOK_OUT_SECONDS)
        assert await relay.due() == waiting
        assert {row.attempts for row in waiting} == {2}
        group.cancel_scope.cancel()


async def test_nobody_is_looked_out_for_while_no_mail_waits(autojump_clock: object) -> None:
    """A mail server is left alone by those who want nothing."""
    _ = autojump_clock
    relay = Relay()
    await relay.send(busy)
    with anyio.move_on_after(5):
        await relay.delivery.look_out()
    assert relay.postman.looks == 0


async def test_silent_mails_leave_when_the_server_is_back_as_real_ones_do(autojump_clock: object) -> None:
    """A connection is enough: none of them waits until a real mail was taken."""
    _ = autojump_clock
    relay = Relay()
    real = await relay.send(away)
    silent = await relay.send(kind=MailKind.SILENT)
    del relay.outbox.rows[real.id]
    with anyio.move_on_after(1.5 * LOOK_OUT_SECONDS):
        await relay.delivery.look_out()
    assert await relay.due() == [silent]


async def test_silent_mails_that_were_told_to_come_later_do_not_come_for_a_connection(autojump_clock: object) -> None:
    """A server that is there may still put mails off."""
    _ = autojump_clock
    relay = Relay()
    await relay.send(away)
    await relay.send(busy)
    with anyio.move_on_after(1.5 * LOOK_OUT_SECONDS):
        await relay.delivery.look_out()
    assert (await relay.send(kind=MailKind.SILENT)).state is MailState.QUEUED
