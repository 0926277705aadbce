"""What the outbox promises to the mail workers, in memory as in Postgres."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID, uuid4

import pytest

from actors.domain.code import Keyring
from actors.domain.email_address import EmailAddress
from actors.domain.mail import MailKind
from actors.ports import NewAccount
from service.adapters.postgres import Postgres
from service.adapters.postgres_accounts import PostgresAccounts
from service.adapters.postgres_outbox import PostgresOutbox
from tests.fakes.accounts import DEFAULTS
from tests.fakes.outbox import MemoryOutbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from actors.domain.code import CodeId
    from actors.domain.mail import ClaimedMail
    from actors.mail_ports import Outbox

KEYRING: Final = Keyring({"k1": bytes(32)})
LATER: Final = 16.0  # a lease of fifteen seconds is over
SHIFT_USERS: Final = "UPDATE users SET code_expires_at = code_expires_at - make_interval(secs => %(s)s)"
SHIFT_MAILS: Final = """
UPDATE mails SET due_at = due_at - make_interval(secs => %(s)s), created_at = created_at - make_interval(secs => %(s)s)
"""
EXHAUST: Final = "UPDATE users SET code_attempts = 5 FROM mails m WHERE m.id = %(id)s AND users.id = m.user_id"


class Mails(Protocol):
    """The port, and what the rest of the service does to its mails."""

    @property
    def outbox(self) -> Outbox:
        """The mails' port."""
        ...

    async def owe(self, code_id: CodeId | None = None) -> UUID:
        """Owe a mail with a code."""
        ...

    async def forget(self, mail_id: UUID) -> None:
        """Let nobody need it any more."""
        ...

    async def wait(self, seconds: float) -> None:
        """Let time pass."""
        ...


class MemoryMails:
    """The fake."""

    def __init__(self) -> None:
        self.outbox = self._fake = MemoryOutbox()

    async def owe(self, code_id: CodeId | None = None) -> UUID:
        """See Mails."""
        return self._fake.owe(code_id or KEYRING.code_id(uuid4())).id

    async def forget(self, mail_id: UUID) -> None:
        """See Mails."""
        self._fake.rows[mail_id].needed = False

    async def wait(self, seconds: float) -> None:
        """Move the fake's clock."""
        self._fake.advance(seconds)


class PostgresMails:
    """The adapter; time passes by moving what is written into the past."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._accounts = PostgresAccounts(postgres, DEFAULTS, "test")
        self.outbox = PostgresOutbox(postgres, DEFAULTS, "test")

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[PostgresMails]:
        """Connect."""
        async with Postgres.open(url) as postgres:
            yield cls(postgres)

    async def owe(self, code_id: CodeId | None = None) -> UUID:
        """Register somebody."""
        mail_id, address = uuid4(), f"{uuid4().hex}@example.com"
        new = NewAccount(
            id=uuid4(),
            registration=uuid4(),
            email=EmailAddress(address, address),
            password_hash=b"$2b$12$right",
            locale="en",
            code_id=code_id or KEYRING.code_id(uuid4()),
            mail_id=mail_id,
        )
        await self._accounts.register([new])
        return mail_id

    async def forget(self, mail_id: UUID) -> None:
        """Use the code's attempts up."""
        await self._postgres.run(EXHAUST, {"id": mail_id})

    async def wait(self, seconds: float) -> None:
        """Move every row into the past."""
        for statement in (SHIFT_USERS, SHIFT_MAILS):
            await self._postgres.run(statement, {"s": seconds})


@pytest.fixture(params=["memory", "postgres"])
def outbox_url(request: pytest.FixtureRequest) -> str | None:
    """Name the outbox' database; None is the one in memory."""
    return request.getfixturevalue("database_url") if request.param == "postgres" else None


@pytest.fixture
async def mails(outbox_url: str | None) -> AsyncIterator[Mails]:
    """Open one of the outboxes, empty."""
    if outbox_url is None:
        yield MemoryMails()
        return
    async with PostgresMails.open(outbox_url) as postgres:
        yield postgres


async def claimed(mails: Mails, mail_id: UUID) -> ClaimedMail:
    """Claim one mail that is there to be claimed."""
    [mail] = await mails.outbox.claim([mail_id])
    return mail


async def test_an_owed_mail_is_claimed_once(mails: Mails) -> None:
    """Whoever comes second goes without, by name and by look."""
    code_id = KEYRING.code_id(uuid4())
    mail_id = await mails.owe(code_id)
    mail = await claimed(mails, mail_id)
    assert (mail.id, mail.kind, mail.code_id, mail.attempt, mail.locale) == (mail_id, MailKind.CODE, code_id, 1, "en")
    assert mail.life_left == pytest.approx(900, abs=5)
    assert await mails.outbox.claim([mail_id]) == []
    assert await mails.outbox.claim_due(10) == []


async def test_unknown_mails_are_passed_over(mails: Mails) -> None:
    """A ring for a mail that is gone finds nothing."""
    mail_id = await mails.owe()
    assert [mail.id for mail in await mails.outbox.claim([uuid4(), mail_id])] == [mail_id]


async def test_a_look_takes_those_that_wait_longest(mails: Mails) -> None:
    """No more than asked for, oldest first."""
    ids = []
    for _ in range(3):
        ids.append(await mails.owe())
        await mails.wait(1)
    assert [mail.id for mail in await mails.outbox.claim_due(2)] == ids[:2]
    assert [mail.id for mail in await mails.outbox.claim_due(2)] == ids[2:]


async def test_a_lease_that_ends_gives_the_mail_to_another_with_a_higher_fence(mails: Mails) -> None:
    """The late worker can neither hold on nor write an outcome; the new one can."""
    mail_id = await mails.owe()
    late = await claimed(mails, mail_id)
    await mails.wait(LATER)
    mail = await claimed(mails, mail_id)
    assert (mail.fence > late.fence, mail.attempt) == (True, 2)
    assert not await mails.outbox.extend(late)
    await mails.outbox.dead(late, "late")
    await mails.outbox.deferred(late, "late", 0)
    assert not await mails.outbox.accepted(late)
    assert await mails.outbox.extend(mail)
    assert await mails.outbox.accepted(mail)


async def test_a_renewed_lease_holds_for_as_long_again(mails: Mails) -> None:
    """A send of a minute keeps its mail."""
    mail_id = await mails.owe()
    mail = await claimed(mails, mail_id)
    for _ in range(6):
        await mails.wait(10)
        assert await mails.outbox.extend(mail)
        assert await mails.outbox.claim_due(1) == []


async def test_an_accepted_mail_is_done_and_says_so_again(mails: Mails) -> None:
    """An outcome is written once; a repeat after a lost answer hears the same."""
    mail_id = await mails.owe()
    mail = await claimed(mails, mail_id)
    assert await mails.outbox.accepted(mail)
    assert await mails.outbox.accepted(mail)
    await mails.outbox.dead(mail, "550")
    await mails.wait(3600)
    assert await mails.outbox.claim_due(1) == []


async def test_a_deferred_mail_is_due_when_its_wait_is_over(mails: Mails) -> None:
    """Not before; then with the same code and one attempt more."""
    mail_id = await mails.owe()
    first = await claimed(mails, mail_id)
    await mails.outbox.deferred(first, "451", 30)
    await mails.wait(29)
    assert await mails.outbox.claim([mail_id]) == []
    await mails.wait(2)
    again = await claimed(mails, mail_id)
    assert (again.attempt, again.code_id) == (2, first.code_id)


async def test_a_hastened_mail_is_due_at_once(mails: Mails) -> None:
    """With its attempts counted as before; its neighbours wait on, and unknown mails are passed over."""
    ids = [await mails.owe() for _ in range(3)]
    for mail in await mails.outbox.claim(ids):
        await mails.outbox.deferred(mail, "SMTPConnectError at connect", 30)
    await mails.outbox.hasten([ids[0], uuid4(), ids[2]])
    hastened = await mails.outbox.claim_due(10)
    assert ({mail.id for mail in hastened}, {mail.attempt for mail in hastened}) == ({ids[0], ids[2]}, {2})


async def test_only_what_waits_is_hastened(mails: Mails) -> None:
    """A mail in a worker's hands stays there, one that is due keeps its turn, and what is done stays done."""
    sending, accepted, dead = [await claimed(mails, await mails.owe()) for _ in range(3)]
    assert await mails.outbox.accepted(accepted)
    await mails.outbox.dead(dead, "550")
    first = await mails.owe()
    await mails.wait(1)
    second = await mails.owe()
    await mails.outbox.hasten([sending.id, accepted.id, dead.id, first])
    assert [mail.id for mail in await mails.outbox.claim_due(10)] == [first, second]


async def test_a_mail_is_owed_for_a_day(mails: Mails) -> None:
    """A deferral past it buries the mail: nobody waits any more."""
    mail_id = await mails.owe()
    await mails.wait(86_390)
    mail = await claimed(mails, mail_id)
    await mails.outbox.deferred(mail, "451", 30)
    await mails.wait(3600)
    assert await mails.outbox.claim([mail_id]) == []


async def test_a_mail_that_was_owed_for_a_day_is_not_sent(mails: Mails) -> None:
    """Workers that were away for longer bury it; its neighbours leave."""
    late = await mails.owe()
    await mails.wait(86_410)
    mail_id = await mails.owe()
    assert [mail.id for mail in await mails.outbox.claim_due(2)] == [mail_id]
    await mails.wait(LATER)
    assert await mails.outbox.claim([late]) == []


async def test_a_dead_mail_stays_dead(mails: Mails) -> None:
    """It is claimed by nobody, ever."""
    mail_id = await mails.owe()
    mail = await claimed(mails, mail_id)
    await mails.outbox.dead(mail, "550")
    await mails.wait(3600)
    assert await mails.outbox.claim([mail_id]) == []
    assert not await mails.outbox.accepted(mail)


async def test_a_fresh_code_replaces_the_old_one_for_good(mails: Mails) -> None:
    """With a whole life; the same wish twice, as after a lost answer, changes nothing more."""
    mail_id = await mails.owe()
    await mails.wait(880)
    mail = await claimed(mails, mail_id)
    assert mail.life_left == pytest.approx(20, abs=5)
    fresh = KEYRING.code_id(uuid4())
    renewed = await mails.outbox.freshen(mail, fresh)
    assert renewed is not None
    assert (renewed.code_id, renewed.life_left) == (fresh, 900)
    assert await mails.outbox.freshen(mail, fresh) == renewed
    await mails.outbox.deferred(renewed, "451", 0)
    assert (await claimed(mails, mail_id)).code_id == fresh


async def test_a_mail_that_nobody_needs_is_withdrawn_at_the_claim(mails: Mails) -> None:
    """Its neighbours in the same claim are not."""
    needless, needed = await mails.owe(), await mails.owe()
    await mails.forget(needless)
    assert [mail.id for mail in await mails.outbox.claim_due(2)] == [needed]
    await mails.wait(LATER)
    assert await mails.outbox.claim([needless]) == []


async def test_a_mail_that_nobody_needs_gets_no_fresh_code(mails: Mails) -> None:
    """It is withdrawn instead, though it was needed when it was claimed."""
    mail_id = await mails.owe()
    mail = await claimed(mails, mail_id)
    await mails.forget(mail_id)
    assert await mails.outbox.freshen(mail, KEYRING.code_id(uuid4())) is None
    await mails.wait(LATER)
    assert await mails.outbox.claim([mail_id]) == []


async def test_a_worker_that_lost_its_claim_cannot_freshen_or_withdraw(mails: Mails) -> None:
    """It hears None and lets go; the mail stays with the worker that has it now."""
    mail_id = await mails.owe()
    late = await claimed(mails, mail_id)
    await mails.wait(LATER)
    mail = await claimed(mails, mail_id)
    assert await mails.outbox.freshen(late, KEYRING.code_id(uuid4())) is None
    assert await mails.outbox.accepted(mail)
