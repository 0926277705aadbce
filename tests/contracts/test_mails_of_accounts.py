"""What becomes of an account with its mails, in Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from actors.domain.user import State
from actors.ports import Redeemed, Registered
from tests.contracts.conftest import KEYRING, PostgresStore
from tests.contracts.steps import ATTEMPTS, find, issue, redeem, register

if TYPE_CHECKING:
    from service.adapters.postgres import Postgres
    from service.adapters.postgres_outbox import PostgresOutbox
    from tests.contracts.conftest import People, Store

DAY: Final = 86_410


@pytest.fixture
def store(postgres: Postgres) -> Store:
    """Build the store over it."""
    return PostgresStore(postgres)


async def test_an_address_whose_mail_was_owed_for_a_day_is_free(
    store: Store, outbox: PostgresOutbox, people: People
) -> None:
    """A mail that never left must not keep the address for whoever typed it first."""
    await register(store, people.registering())
    await store.wait(DAY)
    assert await outbox.claim_due(1) == []
    assert (await find(store)).state(ATTEMPTS) is State.UNDELIVERABLE
    assert [type(outcome) for outcome in await store.accounts.register([people.registering()])] == [Registered]


async def test_a_fresh_code_leaves_the_code_that_has_arrived_alive(
    store: Store, outbox: PostgresOutbox, people: People
) -> None:
    """It dies when the newer mail is accepted, however often that one's code was replaced on the way."""
    new = people.registering()
    await register(store, new)
    await store.mail_accepted(new.mail_id)
    await store.wait(31)
    resent = people.resending(await find(store))
    await issue(store, resent)
    (mail,) = await outbox.claim([resent.mail_id])
    fresh = KEYRING.code_id(resent.mail_id)
    assert await outbox.freshen(mail, fresh) is not None
    account = await find(store)
    assert [code.id for code in account.live_codes(ATTEMPTS)] == [fresh, new.code_id]
    assert account.superseded == (resent.code_id,)
    assert isinstance(await redeem(store, people.trying(account, new.code_id)), Redeemed)
