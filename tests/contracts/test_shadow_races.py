"""Sixteen at once on one address under ENUMERATION=strict: one holds it, none is refused, none waits in a circle."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import trio

from actors.domain.errors import RequestInProgress
from actors.domain.mail import MailKind
from actors.ports import IdempotencyClaim, KeyTaken, Registered
from service.adapters.postgres import Postgres
from service.adapters.postgres_shadows import PostgresShadowCodes, PostgresShadows
from tests.contracts.conftest import People
from tests.contracts.shadow_stores import PostgresShadowStore
from tests.contracts.test_account_races import DEADLOCKS
from tests.fakes.accounts import DEFAULTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from actors.domain.errors import Refusal
    from actors.ports import NewAccount

CROWD = 16
KEY = "ada@example.com"


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresShadowStore]:
    """Open a store with four connections."""
    async with PostgresShadowStore.open(database_url) as store:
        yield store


async def at_once(work: Sequence[Callable[[], Awaitable[object]]]) -> None:
    """Start all of it together and wait for the last."""
    async with trio.open_nursery() as nursery:
        for call in work:
            nursery.start_soon(call)


def strangers(people: People) -> list[NewAccount]:
    """Return registrations with as many passwords."""
    return [people.registering(hashed=b"$2b$12$%d" % number) for number in range(CROWD)]


async def kinds(store: PostgresShadowStore, new: Sequence[NewAccount]) -> list[MailKind | None]:
    """Return what their mails are, sorted."""
    return sorted([await store.kind(one.mail_id) for one in new], key=str)


async def test_of_sixteen_registrations_one_holds_the_address(store: PostgresShadowStore, people: People) -> None:
    """All of them stand; one owes a code, one the day's notice, and the rest nothing."""
    new = strangers(people)
    await at_once([partial(store.registrations.enter, [one]) for one in new])
    (rows,) = await store.registrations.find_all([KEY])
    assert {row.id for row in rows} == {one.id for one in new}
    assert await kinds(store, new) == [MailKind.CODE, MailKind.NOTICE, *[MailKind.SILENT] * (CROWD - 2)]


async def test_of_sixteen_registrations_with_one_password_one_is_made(
    store: PostgresShadowStore, people: People
) -> None:
    """The others hear of the same one, in one batch as in several."""
    new = [people.registering() for _ in range(CROWD)]
    heard: list[Registered | Refusal] = []

    async def enter(some: Sequence[NewAccount]) -> None:
        heard.extend(await store.registrations.enter(some))

    await at_once([partial(enter, new[start : start + 4]) for start in range(0, CROWD, 4)])
    registered = [one for one in heard if isinstance(one, Registered)]
    assert len(registered) == CROWD
    assert len({one.id for one in registered}) == 1
    assert len(await store.registrations.find_all([KEY])) == 1


async def test_of_sixteen_resends_for_a_vacant_address_one_takes_it(store: PostgresShadowStore, people: People) -> None:
    """Each of them is answered; the address has one holder and sends one code."""
    new = strangers(people)
    await store.registrations.enter(new)
    (holder,) = await store.accounts.find([KEY])
    assert holder is not None
    await store.post()
    await store.wait(70)
    (rows,) = await store.registrations.find_all([KEY])
    codes = [people.resending(row, hashed=row.password_hash) for row in rows]
    await at_once([partial(store.codes.issue, [code]) for code in codes])
    sent = [await store.kind(code.mail_id) for code in codes]
    assert sent.count(MailKind.CODE) == 1
    assert sent.count(None) == 0


async def test_batches_over_many_addresses_do_not_wait_in_a_circle(store: PostgresShadowStore, people: People) -> None:
    """Addresses are taken in one order, whatever the order of the batch."""
    several = [type(people)(f"{name}@example.com") for name in ("a", "b", "c", "d")]
    batches = [
        [one.registering(hashed=b"$2b$12$%d" % number) for one in (several if number % 2 else reversed(several))]
        for number in range(CROWD)
    ]
    await at_once([partial(store.registrations.enter, batch) for batch in batches])
    for one in several:
        (rows,) = await store.registrations.find_all([one.email])
        assert len(rows) == CROWD


async def test_batches_of_the_same_registrations_in_any_order_do_not_wait_in_a_circle(database_url: str) -> None:
    """Workers that register, activate and resend at once take turns, also where several stand for one address."""
    async with Postgres.open(database_url, size=8) as postgres:
        policy = replace(DEFAULTS, budget=(), cooldown=0, attempts=2)
        registrations = PostgresShadows(postgres, policy, "test")
        codes = PostgresShadowCodes(postgres, policy, "test")
        several = [People(f"{number}@example.com") for number in range(30)]
        new = [one.registering(hashed=b"$2b$12$%d" % number) for number in range(2) for one in several]
        await registrations.enter(new)
        found = await registrations.find_all([one.email for one in several])
        rows = [row for some in found for row in some]
        assert len(rows) == len(new)

        async def work(seed: int) -> None:
            chance = random.Random(seed)  # noqa: S311 - an order, no secret
            for _ in range(20):
                some = chance.sample(rows, 40)
                match seed % 4:
                    case 0:
                        await codes.redeem([People.trying(row, None, hashed=row.password_hash) for row in some])
                    case 1:
                        await registrations.enter(chance.sample(new, 40))
                    case _:
                        await codes.issue([People.resending(row, hashed=row.password_hash) for row in some])

        await at_once([partial(work, seed) for seed in range(8)])
        assert await postgres.run(DEADLOCKS) == [(0,)]


async def test_a_key_is_bound_to_a_shadow_as_to_an_account(store: PostgresShadowStore, people: People) -> None:
    """Its repeats hear of the same registration, within the transaction that made it."""
    await store.registrations.enter([people.registering()])
    claim = IdempotencyClaim(b"d" * 32, uuid4())
    assert await store.keys.claim(claim, b"body") is None
    new = people.registering(hashed=b"$2b$12$other", idempotency=claim)
    (registered,) = await store.registrations.enter([new])
    assert isinstance(registered, Registered)
    taken = await store.keys.claim(IdempotencyClaim(claim.digest, uuid4()), b"body")
    assert taken == KeyTaken(same_body=True, registered=Registered(new.id, new.registration, registered.created_at))


async def test_a_registration_that_has_lost_its_key_is_none(store: PostgresShadowStore, people: People) -> None:
    """Whoever took the key over registers; the late one makes no shadow and owes no mail."""
    first, second = (IdempotencyClaim(b"d" * 32, uuid4()) for _ in range(2))
    await store.keys.claim(first, b"body")
    await store.wait(3)
    assert await store.keys.claim(second, b"body") is None
    late, other = people.registering(idempotency=first), type(people)("bob@example.com").registering()
    outcomes = await store.registrations.enter([late, other])
    assert [type(outcome) for outcome in outcomes] == [RequestInProgress, Registered]
    assert await store.kind(late.mail_id) is None
    assert await store.registrations.find_all([KEY]) == [()]
    (registered,) = await store.registrations.enter([people.registering(idempotency=second)])
    assert isinstance(registered, Registered)
