"""Sixteen at once through several connections: Postgres lets exactly one of them win."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import pytest
import trio

from actors.domain.errors import EmailTaken
from actors.ports import IdempotencyClaim, Missed, Redeemed, Registered
from service.adapters.postgres import Postgres
from service.adapters.postgres_codes import PostgresCodes
from tests.contracts.conftest import People, PostgresStore
from tests.fakes.accounts import DEFAULTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from actors.domain.user import Account
    from actors.ports import NewAccount

ResultT = TypeVar("ResultT")

CROWD = 16
ATTEMPTS = 5
DEADLOCKS = "SELECT deadlocks::int FROM pg_stat_database WHERE datname = current_database()"


@pytest.fixture
async def postgres_store(database_url: str) -> AsyncIterator[PostgresStore]:
    """Open a store with four connections."""
    async with PostgresStore.open(database_url) as store:
        yield store


async def at_once(work: Sequence[Callable[[], Awaitable[ResultT]]]) -> list[ResultT]:
    """Start all of it together and return the results in the order of the work."""
    results: dict[int, ResultT] = {}

    async def one(place: int, call: Callable[[], Awaitable[ResultT]]) -> None:
        results[place] = await call()

    async with trio.open_nursery() as nursery:
        for place, call in enumerate(work):
            nursery.start_soon(one, place, call)
    return [results[place] for place in range(len(work))]


async def find(store: PostgresStore) -> Account:
    """Look the one account up."""
    (account,) = await store.accounts.find(["ada@example.com"])
    assert account is not None
    return account


async def test_of_sixteen_registrations_of_one_address_one_stands(
    postgres_store: PostgresStore, people: People
) -> None:
    """The others hear that the address is taken, and the account is the winner's in every column."""
    new = [people.registering(hashed=b"$2b$12$%d" % number) for number in range(CROWD)]
    outcomes = await at_once([partial(postgres_store.accounts.register, [one]) for one in new])
    winners = [one for one, (outcome,) in zip(new, outcomes, strict=True) if isinstance(outcome, Registered)]
    assert len(winners) == 1
    assert sum(isinstance(outcome, EmailTaken) for (outcome,) in outcomes) == CROWD - 1
    account = await find(postgres_store)
    (winner,) = winners
    assert (account.id, account.registration) == (winner.id, winner.registration)
    assert (account.password_hash, account.code.id) == (winner.password_hash, winner.code_id)


async def test_of_sixteen_registrations_of_a_vacant_address_one_stands(
    postgres_store: PostgresStore, people: People
) -> None:
    """A pending account whose code is dead is replaced once."""
    first = people.registering()
    await postgres_store.accounts.register([first])
    await postgres_store.mail_dead(first.mail_id)
    outcomes = await at_once([lambda: postgres_store.accounts.register([people.registering()]) for _ in range(CROWD)])
    assert sum(isinstance(outcome, Registered) for (outcome,) in outcomes) == 1
    assert (await find(postgres_store)).codes_left_today == 8


async def test_of_sixteen_redeems_of_one_code_one_wins(postgres_store: PostgresStore, people: People) -> None:
    """Exactly one caller activates the account, and no loser is charged for it."""
    new = people.registering()
    await postgres_store.accounts.register([new])
    account = await find(postgres_store)
    outcomes = await at_once(
        [lambda: postgres_store.codes.redeem([people.trying(account, new.code_id)]) for _ in range(CROWD)]
    )
    assert sum(isinstance(outcome, Redeemed) for (outcome,) in outcomes) == 1
    assert sum(outcome is None for (outcome,) in outcomes) == CROWD - 1
    assert (await find(postgres_store)).code.attempts == 0


async def test_of_sixteen_wrong_guesses_no_more_than_the_attempts_are_heard(
    postgres_store: PostgresStore, people: People
) -> None:
    """Parallel guesses share no attempt: five are counted, down to none, and the rest find a dead code."""
    await postgres_store.accounts.register([people.registering()])
    account = await find(postgres_store)
    outcomes = await at_once(
        [lambda: postgres_store.codes.redeem([people.trying(account, None)]) for _ in range(CROWD)]
    )
    left = sorted(outcome.attempts_left for (outcome,) in outcomes if isinstance(outcome, Missed))
    assert left == [0, 1, 2, 3, 4]
    assert (await find(postgres_store)).code.attempts == ATTEMPTS


async def test_of_sixteen_resends_one_is_issued(postgres_store: PostgresStore, people: People) -> None:
    """The cool-down and the budget lie in the row that they race for."""
    await postgres_store.accounts.register([people.registering()])
    await postgres_store.wait(31)
    account = await find(postgres_store)
    outcomes = await at_once([lambda: postgres_store.codes.issue([people.resending(account)]) for _ in range(CROWD)])
    assert sum(outcome is not None for (outcome,) in outcomes) == 1
    assert (await find(postgres_store)).codes_left_today == 8


async def test_a_redeem_races_a_resend(postgres_store: PostgresStore, people: People) -> None:
    """Whichever comes first, the code that was live activates, and an active account gets no code after that."""
    new = people.registering()
    await postgres_store.accounts.register([new])
    await postgres_store.wait(31)
    account = await find(postgres_store)

    async def redeem() -> object:
        return (await postgres_store.codes.redeem([people.trying(account, new.code_id)]))[0]

    async def issue() -> object:
        return (await postgres_store.codes.issue([people.resending(account)]))[0]

    outcomes = await at_once([redeem, issue] * (CROWD // 2))
    assert sum(isinstance(outcome, Redeemed) for outcome in outcomes[::2]) == 1
    assert sum(outcome is not None for outcome in outcomes[1::2]) <= 1
    assert (await find(postgres_store)).activated_at is not None


@pytest.mark.parametrize("round_", range(4))
async def test_a_redeem_races_a_registration_that_replaces_it(
    postgres_store: PostgresStore, people: People, round_: int
) -> None:
    """The old password activates or is replaced, never both."""
    first, second = people.registering(), people.registering(hashed=b"$2b$12$second")
    await postgres_store.accounts.register([first])
    await postgres_store.mail_dead(first.mail_id)
    account = await find(postgres_store)

    async def redeem() -> object:
        return (await postgres_store.codes.redeem([people.trying(account, first.code_id)]))[0]

    async def register() -> object:
        return (await postgres_store.accounts.register([second]))[0]

    calls = [redeem] * (CROWD // 2) + [register] * (CROWD // 2)
    outcomes = await at_once(calls if round_ % 2 else calls[::-1])
    redeemed = sum(isinstance(outcome, Redeemed) for outcome in outcomes)
    registered = sum(isinstance(outcome, Registered) for outcome in outcomes)
    now = await find(postgres_store)
    assert (redeemed, registered > 0) in {(1, False), (0, True)}
    assert (now.activated_at is not None) == bool(redeemed)
    assert now.password_hash == (first if redeemed else second).password_hash


async def test_of_sixteen_claims_of_one_key_one_is_granted(postgres_store: PostgresStore) -> None:
    """The others hear that the first one runs."""
    outcomes = await at_once(
        [lambda: postgres_store.keys.claim(IdempotencyClaim(b"d" * 32, uuid4()), b"b" * 32) for _ in range(CROWD)]
    )
    assert sum(outcome is None for outcome in outcomes) == 1
    assert all(outcome is None or outcome.registered is None for outcome in outcomes)


@pytest.mark.parametrize("starts", ["first", "last"])
async def test_a_registration_races_those_that_take_its_key_over(
    postgres_store: PostgresStore, people: People, starts: str
) -> None:
    """A key makes one account and is bound to it: of a slow request and its repeats none is told of another outcome."""
    for number in range(CROWD):
        several = type(people)(f"ada{number}@example.com")
        claims = [IdempotencyClaim(b"%032d" % number, uuid4()) for _ in range(4)]
        await postgres_store.keys.claim(claims[0], b"b" * 32)
        await postgres_store.wait(3)

        async def register(claim: IdempotencyClaim, several: People = several) -> object:
            return (await postgres_store.accounts.register([several.registering(idempotency=claim)]))[0]

        async def take_over(claim: IdempotencyClaim) -> object:
            taken = await postgres_store.keys.claim(claim, b"b" * 32)
            return await register(claim) if taken is None else taken.registered

        calls = [partial(register, claims[0]), *[partial(take_over, claim) for claim in claims[1:]]]
        outcomes = await at_once(calls if starts == "first" else calls[::-1])
        told = {outcome.registration for outcome in outcomes if isinstance(outcome, Registered)}
        taken = await postgres_store.keys.claim(claims[3], b"b" * 32)
        assert taken is not None
        assert taken.registered is not None
        assert told == {taken.registered.registration}
        assert not any(isinstance(outcome, EmailTaken) for outcome in outcomes)


async def test_renewals_race_the_registrations_whose_keys_they_keep(
    postgres_store: PostgresStore, people: People
) -> None:
    """Neither waits for the other in a circle, and every registration binds its key."""
    claims = [IdempotencyClaim(b"%032d" % number, uuid4()) for number in range(CROWD * 4)]
    for claim in claims:
        await postgres_store.keys.claim(claim, b"b" * 32)
    batches = [
        [
            type(people)(f"ada{start + place}@example.com").registering(idempotency=claim)
            for place, claim in enumerate(claims[start : start + 4])
        ]
        for start in range(0, len(claims), 4)
    ]

    async def renew() -> list[object]:
        await postgres_store.keys.renew(claims[::-1])
        return []

    async def register(batch: Sequence[NewAccount]) -> list[object]:
        return [*await postgres_store.accounts.register(batch)]

    outcomes = await at_once([call for batch in batches for call in (renew, partial(register, batch), renew)])
    registered = [outcome for some in outcomes for outcome in some]
    assert len(registered) == len(claims)
    assert all(isinstance(outcome, Registered) for outcome in registered)
    for claim in claims:
        taken = await postgres_store.keys.claim(IdempotencyClaim(claim.digest, uuid4()), b"b" * 32)
        assert taken is not None
        assert taken.registered is not None


async def test_batches_of_the_same_accounts_in_any_order_wait_for_nobody_in_a_circle(database_url: str) -> None:
    """Workers whose batches cross take turns: a deadlock costs a second, and with it the way to the database."""
    async with Postgres.open(database_url, size=8) as postgres:
        codes = PostgresCodes(postgres, replace(DEFAULTS, budget=(), cooldown=0, attempts=10_000), "test")
        store = PostgresStore(postgres)
        new = [People(f"{number}@example.com").registering() for number in range(40)]
        await store.accounts.register(new)
        accounts = [account for account in await store.accounts.find([one.email.key for one in new]) if account]

        async def work(seed: int) -> None:
            chance = random.Random(seed)  # noqa: S311 - an order, no secret
            for _ in range(20):
                some = chance.sample(accounts, 30)
                match seed % 3:
                    case 0:
                        await codes.redeem([People.trying(account, None) for account in some])
                    case 1:
                        await codes.issue([People.resending(account) for account in some])
                    case _:
                        await store.accounts.register([People(account.email_key).registering() for account in some])

        await at_once([partial(work, seed) for seed in range(8)])
        assert postgres.breaker().opened == 0
        assert await postgres.run(DEADLOCKS) == [(0,)]
