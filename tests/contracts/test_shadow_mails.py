"""The mails of shadows in Postgres: whom they go to, what becomes of them, and what an operator does to them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from actors.domain.email_address import EmailAddress
from actors.domain.mail import MailKind
from actors.domain.user import State
from service.adapters.postgres_desk import PostgresDesk
from tests.contracts.shadow_stores import PostgresShadowStore
from tests.contracts.steps import ATTEMPTS
from tests.fakes.accounts import DEFAULTS

if TYPE_CHECKING:
    from actors.domain.mail import ClaimedMail
    from actors.ports import NewAccount
    from service.adapters.postgres import Postgres
    from service.adapters.postgres_outbox import PostgresOutbox
    from tests.contracts.conftest import People

KEY: Final = "ada@example.com"


@pytest.fixture
def store(postgres: Postgres) -> PostgresShadowStore:
    """Build the store over it."""
    return PostgresShadowStore(postgres)


def stranger(people: People, number: int = 0) -> NewAccount:
    """Return another's registration of the address, in other letters and another language."""
    new = people.registering(hashed=b"$2b$12$stranger%d" % number)
    return replace(new, email=EmailAddress("ADA@EXAMPLE.COM", KEY), locale="de")


async def taken(store: PostgresShadowStore, people: People) -> None:
    """Register the address, and activate it."""
    new = people.registering()
    await store.registrations.enter([new])
    ((account,),) = await store.registrations.find_all([KEY])
    await store.mail_accepted(new.mail_id)
    await store.codes.redeem([people.trying(account, new.code_id)])


async def owed(store: PostgresShadowStore, outbox: PostgresOutbox, new: NewAccount) -> ClaimedMail:
    """Register, and claim the mail that comes of it."""
    await store.registrations.enter([new])
    (mail,) = await outbox.claim([new.mail_id])
    return mail


async def test_a_notice_goes_to_the_owner(store: PostgresShadowStore, outbox: PostgresOutbox, people: People) -> None:
    """In the owner's spelling and language, whatever the stranger has typed; and it starts the shadow's minute."""
    await taken(store, people)
    mail = await owed(store, outbox, stranger(people))
    assert (mail.kind, mail.recipient, mail.locale) == (MailKind.NOTICE, "Ada@Example.Com", "en")
    assert mail.code_id is not None
    assert await outbox.accepted(mail)
    ((_, shadow),) = await store.registrations.find_all([KEY])
    assert shadow.state(ATTEMPTS) is State.ACCEPTED


async def test_a_silent_mail_shares_the_fate_of_the_last_real_one(
    store: PostgresShadowStore, outbox: PostgresOutbox, people: People
) -> None:
    """Where the owner's notice was refused, the next stranger's mail is too."""
    await taken(store, people)
    notice = await owed(store, outbox, stranger(people))
    before = await owed(store, outbox, stranger(people, 1))
    assert (before.kind, before.doomed) == (MailKind.SILENT, False)
    await outbox.dead(notice, "550")
    after = await owed(store, outbox, stranger(people, 2))
    assert (after.kind, after.doomed) == (MailKind.SILENT, True)
    await outbox.dead(after, "550")
    ((*_, shadow),) = await store.registrations.find_all([KEY])
    assert shadow.state(ATTEMPTS) is State.UNDELIVERABLE


async def test_a_notice_that_never_left_is_owed_by_the_resend(
    store: PostgresShadowStore, outbox: PostgresOutbox, people: People
) -> None:
    """A stranger cannot silence the day's notice by asking for another code."""
    await taken(store, people)
    new = stranger(people)
    await store.registrations.enter([new])
    await store.wait(31)
    ((_, shadow),) = await store.registrations.find_all([KEY])
    code = people.resending(shadow, hashed=new.password_hash)
    await store.codes.issue([code])
    assert await outbox.claim([new.mail_id]) == []
    assert await store.kind(code.mail_id) is MailKind.NOTICE


async def test_a_shadows_code_is_freshened_like_any_other(
    store: PostgresShadowStore, outbox: PostgresOutbox, people: People
) -> None:
    """Its age and its attempts are those of a real one."""
    await taken(store, people)
    await owed(store, outbox, stranger(people))
    mail = await owed(store, outbox, stranger(people, 1))
    fresh = people.registering().code_id.silenced()
    renewed = await outbox.freshen(mail, fresh)
    assert renewed is not None
    assert renewed.code_id == fresh
    ((*_, shadow),) = await store.registrations.find_all([KEY])
    assert shadow.code.id == fresh


async def test_a_deleted_account_takes_its_shadows_along(
    postgres: Postgres, store: PostgresShadowStore, people: People
) -> None:
    """Nothing of the address is left, and it can be registered as if for the first time."""
    await taken(store, people)
    for number in range(3):
        await store.registrations.enter([stranger(people, number)])
    assert await PostgresDesk(postgres, DEFAULTS).delete(KEY)
    assert await store.registrations.find_all([KEY]) == [()]
    new = stranger(people)
    await store.registrations.enter([new])
    assert await store.kind(new.mail_id) is MailKind.CODE


async def test_an_operator_sees_and_replays_no_shadow(
    postgres: Postgres, store: PostgresShadowStore, people: People
) -> None:
    """The account of an address is its holder; what was never sent is not sent again."""
    first = people.registering()
    await store.registrations.enter([first])
    new = [stranger(people, number) for number in range(2)]
    await store.registrations.enter(new)
    await store.post()
    desk = PostgresDesk(postgres, DEFAULTS)
    entry = await desk.show(KEY)
    assert entry is not None
    assert entry.id == first.id
    assert await desk.replay([first.mail_id, *(one.mail_id for one in new)], dry_run=True) == [first.mail_id]
