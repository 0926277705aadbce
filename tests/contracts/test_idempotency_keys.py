"""What the store of idempotency keys promises, in memory as in Postgres."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from actors.domain.errors import EmailTaken, RequestInProgress
from actors.ports import IdempotencyClaim, KeyTaken, Registered

if TYPE_CHECKING:
    from tests.contracts.conftest import People, Store

BODY, OTHER_BODY = b"b" * 32, b"o" * 32
DIGEST = b"d" * 32


def claim() -> IdempotencyClaim:
    """Return a claim of one caller on the key."""
    return IdempotencyClaim(DIGEST, uuid4())


async def test_a_free_key_is_the_first_callers(store: Store) -> None:
    """The second caller hears that the first one runs, and whether it sent the same body."""
    assert await store.keys.claim(claim(), BODY) is None
    assert await store.keys.claim(claim(), BODY) == KeyTaken(same_body=True, registered=None)
    assert await store.keys.claim(claim(), OTHER_BODY) == KeyTaken(same_body=False, registered=None)


async def test_claiming_twice_is_claiming_once(store: Store) -> None:
    """A claim repeated after a lost answer is still the caller's."""
    mine = claim()
    assert await store.keys.claim(mine, BODY) is None
    assert await store.keys.claim(mine, BODY) is None


async def test_a_registration_binds_its_key(store: Store, people: People) -> None:
    """Every later caller hears what was registered, without the mail, and whether its body is the same."""
    mine = claim()
    await store.keys.claim(mine, BODY)
    (registered,) = await store.accounts.register([people.registering(idempotency=mine)])
    assert isinstance(registered, Registered)
    bound = Registered(registered.id, registered.registration, registered.created_at)
    assert await store.keys.claim(claim(), BODY) == KeyTaken(same_body=True, registered=bound)
    assert await store.keys.claim(mine, OTHER_BODY) == KeyTaken(same_body=False, registered=bound)


async def test_a_refused_registration_binds_nothing(store: Store, people: People) -> None:
    """Only what was created is repeated."""
    await store.accounts.register([people.registering()])
    mine = claim()
    await store.keys.claim(mine, BODY)
    (outcome,) = await store.accounts.register([people.registering(idempotency=mine)])
    assert isinstance(outcome, EmailTaken)
    await store.keys.release(mine)
    assert await store.keys.claim(claim(), OTHER_BODY) is None


async def test_a_released_key_is_free_and_a_bound_one_stays(store: Store, people: People) -> None:
    """Giving back works once, and never on what others rely on."""
    mine, next_one = claim(), claim()
    await store.keys.claim(mine, BODY)
    assert await store.keys.release(mine)
    assert await store.keys.claim(next_one, OTHER_BODY) is None
    assert not await store.keys.release(mine)
    assert await store.keys.claim(claim(), BODY) is not None
    await store.accounts.register([people.registering(idempotency=next_one)])
    assert not await store.keys.release(next_one)
    taken = await store.keys.claim(claim(), OTHER_BODY)
    assert taken is not None
    assert taken.registered is not None


async def test_a_claim_whose_process_died_ends_by_itself(store: Store, people: People) -> None:
    """After three seconds another caller may take the key; the first one, should it live, then registers nothing."""
    first, second, late = claim(), claim(), people.registering()
    await store.keys.claim(first, BODY)
    await store.wait(2)
    assert await store.keys.claim(second, BODY) is not None
    await store.wait(1)
    assert await store.keys.claim(second, OTHER_BODY) is None
    (outcome,) = await store.accounts.register([replace(late, idempotency=first)])
    assert isinstance(outcome, RequestInProgress)
    assert await store.accounts.find([late.email.key]) == [None]
    assert await store.keys.claim(claim(), OTHER_BODY) == KeyTaken(same_body=True, registered=None)
    (registered,) = await store.accounts.register([people.registering(idempotency=second)])
    assert isinstance(registered, Registered)


async def test_an_ended_claim_that_nobody_took_over_still_registers(store: Store, people: People) -> None:
    """Its holder was slow, and nobody asked meanwhile."""
    mine = claim()
    await store.keys.claim(mine, BODY)
    await store.wait(60)
    (registered,) = await store.accounts.register([people.registering(idempotency=mine)])
    assert isinstance(registered, Registered)
    taken = await store.keys.claim(claim(), BODY)
    assert taken == KeyTaken(same_body=True, registered=replace(registered, mail_id=None))


async def test_a_registration_without_its_key_is_alone_in_that(store: Store, people: People) -> None:
    """Its neighbours in the batch, with keys and without, are registered, each in its place."""
    mine, others = claim(), [type(people)(f"{name}@example.com") for name in "zyx"]
    await store.keys.claim(mine, BODY)
    outcomes = await store.accounts.register([
        others[0].registering(idempotency=claim()),
        others[1].registering(idempotency=mine),
        others[2].registering(),
    ])  # fmt: skip
    assert [type(outcome) for outcome in outcomes] == [RequestInProgress, Registered, Registered]


async def test_a_registration_said_twice_stands_though_its_key_is_gone(store: Store, people: People) -> None:
    """The repeat of a statement whose answer was lost hears the same."""
    mine = claim()
    await store.keys.claim(mine, BODY)
    new = people.registering(idempotency=mine)
    (first,) = await store.accounts.register([new])
    await store.wait(86400)
    await store.keys.claim(claim(), OTHER_BODY)
    (again,) = await store.accounts.register([new])
    assert isinstance(first, Registered)
    assert isinstance(again, Registered)
    assert (again.id, again.registration) == (first.id, first.registration)


async def test_a_renewed_claim_lasts_for_as_long_again(store: Store) -> None:
    """Several at once, for as long as their holder says so."""
    mine, other = claim(), IdempotencyClaim(b"e" * 32, uuid4())
    await store.keys.claim(mine, BODY)
    await store.keys.claim(other, BODY)
    for _ in range(4):
        await store.wait(2)
        await store.keys.renew([mine, other])
    assert await store.keys.claim(claim(), BODY) == KeyTaken(same_body=True, registered=None)
    assert await store.keys.claim(IdempotencyClaim(other.digest, uuid4()), BODY) is not None
    await store.wait(3)
    assert await store.keys.claim(claim(), BODY) is None


async def test_what_is_not_the_callers_cannot_be_renewed(store: Store, people: People) -> None:
    """A key that was given back stays free, one that was taken over ends when its holder's claim does."""
    mine, second = claim(), claim()
    await store.keys.claim(mine, BODY)
    await store.keys.release(mine)
    await store.keys.renew([mine])
    assert await store.keys.claim(second, BODY) is None
    await store.wait(2)
    await store.keys.renew([mine])
    await store.wait(1)
    assert await store.keys.claim(mine, BODY) is None
    await store.accounts.register([people.registering(idempotency=mine)])
    await store.keys.renew([mine])
    await store.wait(86400)
    assert await store.keys.claim(second, BODY) is None


async def test_a_bound_key_is_free_after_a_day(store: Store, people: People) -> None:
    """Twenty-four hours after it was taken the key may name another registration."""
    mine = claim()
    await store.keys.claim(mine, BODY)
    await store.accounts.register([people.registering(idempotency=mine)])
    await store.wait(86400 - 5)
    assert await store.keys.claim(claim(), BODY) is not None
    await store.wait(5)
    assert await store.keys.claim(claim(), OTHER_BODY) is None


async def test_keys_do_not_know_each_other(store: Store) -> None:
    """Another digest is another key."""
    assert await store.keys.claim(claim(), BODY) is None
    assert await store.keys.claim(IdempotencyClaim(b"e" * 32, uuid4()), BODY) is None
