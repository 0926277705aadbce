"""Pace: a silent mail takes as long as real ones do, and ends as they end."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid4

import anyio
import pytest
import trio

from actors.delivery import Delivery, Outcome
from actors.domain.code import Keyring
from actors.domain.mail import ClaimedMail, Deferred, MailKind, Rejected, Unreached
from actors.pace import TYPICAL_SECONDS, Pace
from tests.fakes.outbox import MemoryOutbox, ScriptedPostman

KEYRING = Keyring({"k1": bytes(32)})


def mail(kind: MailKind = MailKind.SILENT, *, doomed: bool = False, life_left: float = 900.0) -> ClaimedMail:
    """Return a claimed mail of a shadow."""
    return ClaimedMail(
        id=uuid4(),
        fence=1,
        attempt=1,
        kind=kind,
        account=uuid4(),
        code_id=KEYRING.code_id(uuid4()).silenced(),
        recipient="ada@example.com",
        locale="en",
        life_left=life_left,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        doomed=doomed,
    )


async def refused() -> None:
    """Fail as a send does whose server is busy."""
    raise Deferred("451 at RCPT", 7.0)


async def test_a_silent_mail_takes_the_time_of_a_real_one(autojump_clock: object) -> None:
    """Before the first real send it takes a typical time, after that one of the real ones'."""
    pace = Pace(lambda: 0.99)
    begun = trio.current_time()
    await pace.pretend(mail())
    assert trio.current_time() - begun == pytest.approx(TYPICAL_SECONDS)
    await pace.keep(anyio.sleep(0.3))
    await pace.keep(anyio.sleep(0.7))
    begun = trio.current_time()
    await pace.pretend(mail())
    assert trio.current_time() - begun == pytest.approx(0.7)


async def test_a_silent_mail_is_put_off_while_real_ones_are(autojump_clock: object) -> None:
    """A server that put the last mail off puts it off too, until it took one, or a minute is over."""
    pace = Pace(lambda: 0.0)
    with pytest.raises(Deferred):
        await pace.keep(refused())
    with pytest.raises(Deferred) as caught:
        await pace.pretend(mail())
    assert (caught.value.reason, caught.value.retry_after) == ("451 at RCPT", 7.0)
    await pace.keep(anyio.sleep(0.1))
    await pace.pretend(mail())
    with pytest.raises(Deferred):
        await pace.keep(refused())
    await trio.sleep(60)
    await pace.pretend(mail())


async def test_a_silent_mail_reaches_the_server_no_sooner_than_real_ones() -> None:
    """It waits as one that found nobody there, and is brought forward with those."""

    async def away() -> None:
        await anyio.lowlevel.checkpoint()
        raise Unreached("SMTPConnectError at connect")

    pace = Pace(lambda: 0.0)
    for send in (away, lambda: pace.pretend(mail())):
        with pytest.raises(Unreached):
            await pace.keep(send())


async def test_a_silent_mail_is_refused_where_real_ones_were() -> None:
    """Its address' last real mail says what becomes of it."""
    with pytest.raises(Rejected):
        await Pace(lambda: 0.0).pretend(mail(doomed=True))


async def test_a_silent_mail_is_never_sent(autojump_clock: object) -> None:
    """The postman does not hear of it, and the outbox says accepted."""
    outbox, postman = MemoryOutbox(), ScriptedPostman()
    row = outbox.owe(KEYRING.code_id(uuid4()).silenced())
    row.kind = MailKind.SILENT
    (claimed,) = await outbox.claim([row.id])
    delivery = Delivery(
        outbox, postman, KEYRING, code_ttl_seconds=60, chance=lambda: 0.0, new_number=lambda: UUID(int=7)
    )
    assert (await delivery.deliver(claimed)).outcome is Outcome.ACCEPTED
    assert postman.taken == []


@pytest.mark.parametrize("kind", [MailKind.SILENT, MailKind.NOTICE])
async def test_a_shadows_code_is_renewed_in_silence(autojump_clock: object, kind: MailKind) -> None:
    """What waited too long gets a fresh code id, as a real code does, and one that nobody's code has."""
    outbox, postman = MemoryOutbox(), ScriptedPostman()
    row = outbox.owe(KEYRING.code_id(uuid4()).silenced(), age=841)
    row.kind = kind
    (claimed,) = await outbox.claim([row.id])
    delivery = Delivery(
        outbox, postman, KEYRING, code_ttl_seconds=60, chance=lambda: 0.0, new_number=lambda: UUID(int=7)
    )
    await delivery.deliver(claimed)
    assert row.code_id == KEYRING.code_id(UUID(int=7)).silenced()
    assert [code for _, code in postman.taken] == [None] * (kind is MailKind.NOTICE)


def test_a_silent_code_matches_nothing() -> None:
    """Neither the code under the signing key nor any other; no operator's key can have its name."""
    account, code_id = uuid4(), KEYRING.code_id(uuid4())
    assert KEYRING.matches(account, code_id, KEYRING.code(account, code_id))
    assert not KEYRING.matches(account, code_id.silenced(), KEYRING.code(account, code_id))
    assert not KEYRING.any_matches(account, [code_id.silenced()], KEYRING.code(account, code_id))
