"""Every race about one account, 16 at once: in one worker's batch through the actors, and across workers' batches."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio

from actors.code_issuer import CodeIssuer
from actors.domain.errors import EmailTaken
from actors.domain.mail import MailKind, MailState, Outcome, Result
from actors.kit.supervisor import Supervisor
from actors.ports import Missed, Redeemed
from actors.user_registry import UserRegistry
from service.postgres import connection, pool
from service.postgres.pool import Postgres
from tests.fakes.accounts import POLICY
from tests.fakes.flows import FakeWakeups
from tests.integration.conftest import Stores, new_account, new_mail, redemption, resend, take_over

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from uuid import UUID

    from actors.domain.user import Account
    from actors.kit.mailbox import Address

COUNTS = "SELECT sum(registrations)::int, sum(activations)::int, sum(resends)::int FROM vestibule.business_counts"
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


async def asked(what: str, stores: Stores, email: str) -> list[Any]:
    """Return what sixteen askers ask for who have read the same."""
    if what == "registration":
        return [new_account(email) for _ in range(WAYS)]
    account = await stores.registered(email)
    match what:
        case "redeem":
            return [redemption(account, account.mails[0].id)] * WAYS
        case "resend":
            return [resend(account) for _ in range(WAYS)]
        case _:
            for mail in await stores.queue.claim(10):
                await stores.settled(mail, Outcome.DEAD)
            return [new_account(email) for _ in range(WAYS)]


WINNERS = {"registration": (1, 0, 1), "redeem": (1, 1, 1), "resend": (1, 0, 2), "take-over": (2, 0, 2)}


@pytest.mark.parametrize("what", WINNERS)
async def test_one_of_many_wins(stores: Stores, other: Stores, what: str) -> None:
    """Half of them in each of two workers' batches; the others are refused, or look again, and nothing is doubled."""
    registered, activated, mails = WINNERS[what]
    async with actors(stores) as one, actors(other) as two:
        for number in range(ROUNDS):
            email = f"user{number}@example.com"
            messages = await asked(what, stores, email)
            actor = int(what in {"redeem", "resend"})
            outcomes = await at_once([partial((one, two)[i % 2][actor].ask, it) for i, it in enumerate(messages)])
            assert sum(isinstance(outcome, EmailTaken | None) for outcome in outcomes) == WAYS - 1
            after = await stores.account(email)
            assert (after.registration, bool(after.activated_at), len(after.mails)) == (registered, activated, mails)
    [counts] = await stores.rows(COUNTS)
    assert counts == (registered * ROUNDS, activated * ROUNDS, (mails - registered) * ROUNDS)


async def test_crossing_batches_of_registrations_do_not_deadlock(stores: Stores, other: Stores) -> None:
    """Two workers add the same addresses in opposite orders, again and again."""
    for number in range(ROUNDS):
        emails = [f"user{index}.{number}@example.com" for index in range(WAYS)]
        calls: list[Callable[[], Awaitable[Any]]] = [
            partial(one.accounts.add, [new_account(email) for email in order])
            for one, order in ((stores, emails), (other, emails[::-1])) * 4
        ]
        outcomes = await at_once(calls)
        assert sum(added is not None for batch in outcomes for added in batch) == WAYS
    assert await stores.rows("SELECT sum(registrations) FROM vestibule.business_counts") == [(WAYS * ROUNDS,)]


async def test_of_many_guesses_five_are_counted(stores: Stores, other: Stores) -> None:
    """Each takes one attempt of its own; the others are compared with nothing, and the right code is dead after."""
    async with actors(stores) as (_, issuer), actors(other) as (_, issuer2):
        for number in range(ROUNDS):
            account = await stores.registered(f"user{number}@example.com")
            guess = redemption(account)
            outcomes = await at_once([partial((issuer, issuer2)[i % 2].ask, guess) for i in range(WAYS)])
            assert sorted(one.attempts_left for one in outcomes if isinstance(one, Missed)) == [0, 1, 2, 3, 4]
            assert outcomes.count(None) == WAYS - 5
            right = redemption(account, account.mails[0].id)
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


async def test_a_take_over_and_a_redeem_exclude_each_other(stores: Stores, other: Stores) -> None:
    """Either the old code activates the old password, or the new registration stands pending: never a mixture."""
    for number in range(ROUNDS * 4):
        account = await stores.registered(f"user{number}@example.com")
        redeem = partial(other.accounts.redeem, [redemption(account, account.mails[0].id)])
        replace = partial(stores.accounts.issue, [take_over(account)])
        await at_once([redeem, replace] if number % 2 else [replace, redeem])
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


PATIENT_SECONDS = 20  # for a statement: how long a crowd of them takes here is no matter, but for a deadlock
# A deadlock that the server may not see in time is a lock that does not come in time: it fails the test.
SEE_NO_DEADLOCK = """
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout TO %L', current_database(), '1min'); END $$
"""
OLDER_ALIVE = """
SELECT count(*) FROM vestibule.mails o JOIN vestibule.mails n USING (account_id)
WHERE o.kind = 'code' AND n.kind = 'code' AND o.number < n.number AND n.state = 'accepted'
  AND o.state IN ('queued', 'sending', 'accepted', 'delivered')
"""
REPLACED_OWED = """
SELECT count(*) FROM vestibule.mails m JOIN vestibule.accounts a ON a.id = m.account_id
WHERE m.kind = 'code' AND m.registration < a.registration AND m.state = 'queued' AND m.tries = 0
"""
CODES = "SELECT account_id, count(*) FROM vestibule.mails WHERE counted AND kind = 'code' GROUP BY 1"
ACTIVE = "SELECT id FROM vestibule.accounts WHERE activated_at IS NOT NULL ORDER BY id"


class Crossing:
    """Batches of every kind over the same accounts, in an order that chance gives; counts what it is told."""

    def __init__(self, emails: Sequence[str]) -> None:
        self._emails = emails
        self.guesses: Counter[UUID] = Counter()
        self.activated: list[UUID] = []

    async def work(self, stores: Stores, seed: int) -> None:
        """Run batches on one worker's stores."""
        chance = random.Random(seed)  # noqa: S311 - an order, no secret
        kinds = (self.guess, self.guess, self.hit, self.issue, self.take_over, self.add, self.settle, self.settle)
        for _ in range(30):
            read = await stores.accounts.find(chance.sample(self._emails, 12))
            await chance.choice(kinds)(stores, [account for account in read if account is not None])

    async def guess(self, stores: Stores, accounts: Sequence[Account]) -> None:
        """Type wrong codes."""
        outcomes = await stores.accounts.redeem([redemption(account) for account in accounts])
        self.guesses.update(one.id for one, outcome in zip(accounts, outcomes, strict=True) if type(outcome) is Missed)

    async def hit(self, stores: Stores, accounts: Sequence[Account]) -> None:
        """Type one right code; half of the accounts stay pending."""
        some = [one for one in accounts if one.email_key in self._emails[::2] and one.live_mails(POLICY)][:1]
        hits = [redemption(one, one.live_mails(POLICY)[0].id) for one in some]
        outcomes = await stores.accounts.redeem(hits)
        self.activated += [one.account for one, it in zip(hits, outcomes, strict=True) if isinstance(it, Redeemed)]

    async def issue(self, stores: Stores, accounts: Sequence[Account]) -> None:
        """Owe codes and notices."""
        kinds = (MailKind.CODE, MailKind.CODE, MailKind.NOTICE)
        await stores.accounts.issue([resend(one, kinds[index % 3]) for index, one in enumerate(accounts)])

    async def take_over(self, stores: Stores, accounts: Sequence[Account]) -> None:
        """Register accounts anew."""
        await stores.accounts.issue([take_over(account) for account in accounts])

    async def add(self, stores: Stores, accounts: Sequence[Account]) -> None:
        """Register addresses that are taken."""
        assert not any(await stores.accounts.add([new_account(account.email_key) for account in accounts]))

    async def settle(self, stores: Stores, _: Sequence[Account]) -> None:
        """Claim mails, and write what became of them at once."""
        mails = await stores.queue.claim(12)
        accepted = {mail.account: mail for mail in mails[4:] if mail.kind is MailKind.CODE}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stores.queue.extend, mails)
            nursery.start_soon(stores.queue.accepted, list(accepted.values())[::-1])
            nursery.start_soon(stores.queue.settle, [(mail, Result(Outcome.DEFERRED, "450")) for mail in mails[:2]])
            for mail in mails[2:4]:
                if mail.kind is MailKind.CODE:
                    nursery.start_soon(stores.queue.reissue, mail, new_mail())


async def test_batches_of_every_kind_cross(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, 24 accounts: no deadlock, no sixth guess, no second activation, no older code beside a newer one."""
    monkeypatch.setattr(pool, "DEADLINE_SECONDS", PATIENT_SECONDS)
    patient = (f"SET {{0}} lock_timeout = '{PATIENT_SECONDS}s'", f"SET {{0}} statement_timeout = '{PATIENT_SECONDS}s'")
    monkeypatch.setattr(connection, "SETTINGS", (*patient, *connection.SETTINGS[2:]))
    with psycopg.connect(database, autocommit=True) as operator:
        operator.execute(SEE_NO_DEADLOCK)
    emails = [f"user{number}@example.com" for number in range(24)]
    crossing = Crossing(emails)
    async with Postgres.open(database) as one, Postgres.open(database) as two:
        workers = [Stores(one, "w1"), Stores(two, "w2")]
        await workers[0].accounts.add([new_account(email) for email in emails])
        await at_once([partial(crossing.work, workers[seed % 2], seed) for seed in range(8)])
        assert one.breaker.opened == two.breaker.opened == 0
        rows = workers[0].rows
        assert await rows("SELECT max(guesses) <= 5 FROM vestibule.mails") == [(True,)]
        assert await rows(OLDER_ALIVE) == await rows(REPLACED_OWED) == [(0,)]
        assert sorted(crossing.activated) == [account for (account,) in await rows(ACTIVE)]
        codes = await one.run(CODES, reading=True)
        assert all(crossing.guesses[account] <= POLICY.attempts * count for account, count in codes)
