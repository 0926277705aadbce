"""What the store of idempotency keys promises, in memory as in Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

from actors.domain.errors import EmailTaken
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
    await store.keys.release(mine)
    assert await store.keys.claim(next_one, OTHER_BODY) is None
    await store.keys.release(mine)
    assert await store.keys.claim(claim(), BODY) is not None
    await store.accounts.register([people.registering(idempotency=next_one)])
    await store.keys.release(next_one)
    taken = await store.keys.claim(claim(), OTHER_BODY)
    assert taken is not None
    assert taken.registered is not None


async def test_a_claim_whose_process_died_ends_by_itself(store: Store, people: People) -> None:
    """After a while another caller may take the key; the first one then binds nothing."""
    first, second = claim(), claim()
    await store.keys.claim(first, BODY)
    await store.wait(13)
    assert await store.keys.claim(second, BODY) is not None
    await store.wait(2)
    assert await store.keys.claim(second, OTHER_BODY) is None
    await store.accounts.register([people.registering(idempotency=first)])
    assert await store.keys.claim(claim(), OTHER_BODY) == KeyTaken(same_body=True, registered=None)


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
