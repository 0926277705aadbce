"""What the tests of the accounts' contract do to a store, and expect of it on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.ports import Missed, Redeemed, Registered, Resent

if TYPE_CHECKING:
    from actors.domain.errors import Refusal
    from actors.domain.user import Account
    from actors.ports import NewAccount, NewCode, Redemption
    from tests.contracts.conftest import People, Store

ATTEMPTS = 5


async def register(store: Store, new: NewAccount) -> Registered:
    """Register and expect that it stands."""
    (outcome,) = await store.accounts.register([new])
    assert isinstance(outcome, Registered)
    return outcome


async def refused(store: Store, new: NewAccount) -> Refusal:
    """Register and expect a refusal."""
    (outcome,) = await store.accounts.register([new])
    assert not isinstance(outcome, Registered)
    return outcome


async def find(store: Store, key: str = "ada@example.com") -> Account:
    """Look up an account that must be there."""
    (account,) = await store.accounts.find([key])
    assert account is not None
    return account


async def redeem(store: Store, one: Redemption) -> Redeemed | Missed | None:
    """Try once."""
    (outcome,) = await store.codes.redeem([one])
    return outcome


async def issue(store: Store, code: NewCode) -> Resent | None:
    """Ask for a code."""
    (outcome,) = await store.codes.issue([code])
    return outcome


async def miss(store: Store, people: People, times: int) -> list[Redeemed | Missed | None]:
    """Type so many wrong codes, looking the account up before each."""
    return [await redeem(store, people.trying(await find(store), None)) for _ in range(times)]
