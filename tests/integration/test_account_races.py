"""Every race about one account, 16 at once: in one worker's batch through the actors, and across workers' batches."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from actors.code_issuer import CodeIssuer, Issue, Redeem
from actors.domain.errors import EmailTaken
from actors.domain.mail import MailState
from actors.kit.supervisor import Supervisor
from actors.ports import Missed, Redeemed
from actors.user_registry import Register, UserRegistry
from service.postgres.pool import Postgres
from tests.fakes.accounts import POLICY
from tests.fakes.flows import FakeWakeups
from tests.integration.conftest import Stores, new_account, new_mail, redemption, resend, take_over

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from actors.kit.mailbox import Address

WAYS = 16
ROUNDS = 5


async def at_once(calls: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Run all calls at once and return their outcomes, refusals among them, in order."""
    outcomes: list[Any] = [None] * len(calls)

    async def run(index: int, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            outcomes[index] = await call()
        except EmailTaken as refusal:
            outcomes[index] = refusal

    async with trio.open_nursery() as nursery:
        for index, call in enumerate(calls):
            nursery.start_soon(run, index, call)
    return outcomes


@asynccontextmanager
async def actors(stores: Stores) -> AsyncIterator[tuple[Address, Address]]:
    """Run one worker's registry and issuer, whose mailboxes make batches of what comes at once."""
    crashes: list[Exception] = []
    supervisor = Supervisor(lambda _, error: crashes.append(error))
    registry = supervisor.start(lambda: UserRegistry(stores.accounts, POLICY))
    issuer = supervisor.start(lambda: CodeIssuer(stores.accounts, FakeWakeups()))
    async with supervisor.running():
        yield registry, issuer
    assert crashes == []


@pytest.fixture
async def other(database: str) -> AsyncIterator[Stores]:
    """Give another worker's stores over the same database."""
    async with Postgres.open(database) as postgres:
        yield Stores(postgres, "w2")


async def test_of_many_registrations_one_wins(stores: Stores, other: Stores) -> None:
    """Half of them in each of two workers' batches; one account, one mail, and everybody else is refused."""
    async with actors(stores) as (registry, _), actors(other) as (registry2, _):
        for number in range(ROUNDS):
            email = f"user{number}@example.com"
            asks = [partial((registry, registry2)[i % 2].ask, Register(new_account(email))) for i in range(WAYS)]
            outcomes = await at_once(asks)
            assert sum(isinstance(outcome, EmailTaken) for outcome in outcomes) == WAYS - 1
            assert len((await stores.account(email)).mails) == 1


async def test_crossing_batches_of_registrations_do_not_deadlock(stores: Stores, other: Stores) -> None:
    """Two workers add the same addresses in opposite orders, again and again."""
    for number in range(ROUNDS):
        emails = [f"user{index}.{number}@example.com" for index in range(WAYS)]
        calls = [
            partial(one.accounts.add, [new_account(email) for email in order])
            for one, order in ((stores, emails), (other, emails[::-1])) * 4
        ]
        outcomes = await at_once(calls)
        assert sum(added is not None for batch in outcomes for added in batch) == WAYS
    assert await stores.rows("SELECT sum(registrations) FROM vestibule.business_counts") == [(WAYS * ROUNDS,)]


async def test_of_many_redeemers_one_activates(stores: Stores, other: Stores) -> None:
    """The others find the account changed; one activation is counted."""
    async with actors(stores) as (_, issuer), actors(other) as (_, issuer2):
        for number in range(ROUNDS):
            account = await stores.registered(f"user{number}@example.com")
            hit = Redeem(redemption(account, account.mails[0].id))
            outcomes = await at_once([partial((issuer, issuer2)[i % 2].ask, hit) for i in range(WAYS)])
            assert sum(isinstance(outcome, Redeemed) for outcome in outcomes) == 1
            assert outcomes.count(None) == WAYS - 1
    assert await stores.rows("SELECT sum(activations) FROM vestibule.business_counts") == [(ROUNDS,)]


async def test_of_many_guesses_five_are_counted(stores: Stores, other: Stores) -> None:
    """Each takes one attempt of its own; the others are compared with nothing, and the right code is dead after."""
    async with actors(stores) as (_, issuer), actors(other) as (_, issuer2):
        for number in range(ROUNDS):
            account = await stores.registered(f"user{number}@example.com")
            guess = Redeem(redemption(account))
            outcomes = await at_once([partial((issuer, issuer2)[i % 2].ask, guess) for i in range(WAYS)])
            assert sorted(one.attempts_left for one in outcomes if isinstance(one, Missed)) == [0, 1, 2, 3, 4]
            assert outcomes.count(None) == WAYS - 5
            right = Redeem(redemption(account, account.mails[0].id))
            assert await issuer.ask(right) is None


async def test_a_sixth_guess_never_hits(stores: Stores, other: Stores) -> None:
    """Guesses and the right code at once: if five guesses were first, the code is dead; if not, it activates."""
    for number in range(ROUNDS * 2):
        account = await stores.registered(f"user{number}@example.com")
        tries = [redemption(account) for _ in range(WAYS)]
        tries[WAYS // 2] = redemption(account, account.mails[0].id)
        calls = [partial((stores, other)[i % 2].accounts.redeem, [one]) for i, one in enumerate(tries)]
        outcomes = [batch[0] for batch in await at_once(calls)]
        missed = sum(isinstance(outcome, Missed) for outcome in outcomes)
        active = (await stores.account(account.email_key)).activated_at is not None
        assert active == any(isinstance(outcome, Redeemed) for outcome in outcomes)
        assert missed <= 5
        assert active or missed == 5


async def test_of_many_resends_one_is_issued(stores: Stores, other: Stores) -> None:
    """All read the same version; the others look again."""
    async with actors(stores) as (_, issuer), actors(other) as (_, issuer2):
        for number in range(ROUNDS):
            account = await stores.registered(f"user{number}@example.com")
            asks = [partial((issuer, issuer2)[i % 2].ask, Issue(resend(account))) for i in range(WAYS)]
            outcomes = await at_once(asks)
            assert outcomes.count(None) == WAYS - 1
            assert len((await stores.account(account.email_key)).mails) == 2


async def test_of_many_take_overs_one_wins(stores: Stores, other: Stores) -> None:
    """The others are refused, since the address is held again."""
    async with actors(stores) as (registry, _), actors(other) as (registry2, _):
        for number in range(ROUNDS):
            email = f"user{number}@example.com"
            await stores.registered(email)
            await stores.queue.dead([(mail, "550") for mail in await stores.queue.claim(10)])
            asks = [partial((registry, registry2)[i % 2].ask, Register(new_account(email))) for i in range(WAYS)]
            outcomes = await at_once(asks)
            assert sum(isinstance(outcome, EmailTaken) for outcome in outcomes) == WAYS - 1
            assert (await stores.account(email)).registration == 2


async def test_a_take_over_and_a_redeem_exclude_each_other(stores: Stores, other: Stores) -> None:
    """Either the old code activates the old password, or the new registration stands pending: never a mixture."""
    for number in range(ROUNDS * 4):
        account = await stores.registered(f"user{number}@example.com")
        redeem = partial(other.accounts.redeem, [redemption(account, account.mails[0].id)])
        replace = partial(stores.accounts.issue, [take_over(account)])
        calls = [redeem, replace] if number % 2 else [replace, redeem]
        await at_once(calls)
        after = await stores.account(account.email_key)
        if after.activated_at is not None:
            assert (after.registration, after.password_hash) == (1, account.password_hash)
        else:
            assert (after.registration, [mail.state for mail in after.mails]) == (
                2,
                [MailState.QUEUED, MailState.SUPERSEDED],
            )


async def test_an_acceptance_and_a_redeem_may_cross(stores: Stores, other: Stores) -> None:
    """The code activates before, while and after its mail is written as accepted."""
    for number in range(ROUNDS):
        account = await stores.registered(f"user{number}@example.com")
        mails = await stores.queue.claim(10)
        hit = redemption(account, account.mails[0].id)
        accepted, redeemed = await at_once(
            [partial(stores.queue.accepted, mails), partial(other.accounts.redeem, [hit])]
        )
        assert accepted == {mails[0].id}
        assert isinstance(redeemed[0], Redeemed)


async def test_of_two_mails_accepted_at_once_the_newer_code_lives(stores: Stores, other: Stores) -> None:
    """Whichever is written first."""
    for number in range(ROUNDS * 4):
        email = f"user{number}@example.com"
        account = await stores.registered(email)
        older = await stores.queue.claim(10)
        await stores.accounts.issue([resend(account)])
        newer = await other.queue.claim(10)
        calls = [partial(stores.queue.accepted, older), partial(other.queue.accepted, newer)]
        await at_once(calls if number % 2 else calls[::-1])
        states = [mail.state for mail in (await stores.account(email)).mails]
        assert states == [MailState.ACCEPTED, MailState.SUPERSEDED]


async def test_a_reissue_loses_no_guess(stores: Stores, other: Stores) -> None:
    """Guesses counted while a mail is reissued are inherited by the fresh code."""
    for number in range(ROUNDS * 2):
        email = f"user{number}@example.com"
        account = await stores.registered(email)
        [mail] = await stores.queue.claim(10)
        guesses = [partial(other.accounts.redeem, [redemption(account)]) for _ in range(3)]
        outcomes = await at_once([*guesses, partial(stores.queue.reissue, mail, new_mail())])
        counted = sum(isinstance(batch[0], Missed) for batch in outcomes[:3])
        fresh, old = (await stores.account(email)).mails
        assert (old.guesses, fresh.guesses) == (counted, counted)


async def test_many_workers_claim_each_mail_once(stores: Stores, other: Stores) -> None:
    """Sixteen claims at once share what is due."""
    for number in range(WAYS * 2):
        await stores.registered(f"user{number}@example.com")
    batches = await at_once([partial((stores, other)[i % 2].queue.claim, 4) for i in range(WAYS)])
    claimed = [mail.id for batch in batches for mail in batch]
    while rest := await stores.queue.claim(4):  # a claim passes over what another one holds at that moment
        claimed += [mail.id for mail in rest]
    assert len(claimed) == len(set(claimed)) == WAYS * 2
