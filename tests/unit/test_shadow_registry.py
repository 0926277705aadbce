"""ShadowRegistry: batches by kind, each with a fate of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import trio

from actors.domain.code import CodeId
from actors.domain.email_address import EmailAddress
from actors.kit.mailbox import AnswerLost
from actors.kit.supervisor import Supervisor
from actors.ports import NewAccount
from actors.shadow_registry import Enter, FindAll, ShadowRegistry
from tests.fakes.clock import FakeClock
from tests.fakes.idempotency import FakeIdempotencyKeys
from tests.fakes.shadows import FakeShadows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

KEY = "ada@example.com"


class LosingShadows(FakeShadows):
    """The fake, which registers nobody."""

    async def enter(self, accounts: Sequence[NewAccount]) -> NoReturn:  # noqa: ARG002 - whoever they are
        """Lose the answer."""
        raise AnswerLost


async def test_what_is_lost_with_a_registration_is_not_lost_with_a_look_up() -> None:
    """One statement each: a look-up in the same batch hears its own answer."""
    clock = FakeClock()
    registrations = LosingShadows(clock, FakeIdempotencyKeys(clock))
    new = NewAccount(uuid4(), uuid4(), EmailAddress(KEY, KEY), b"$2b$12$", "en", CodeId("k1", uuid4()), uuid4())

    async def lose() -> None:
        with pytest.raises(AnswerLost):
            await address.ask(Enter(new))

    async def look_up() -> None:
        assert await address.ask(FindAll(KEY)) == ()

    supervisor = Supervisor(lambda name, error: pytest.fail(f"{name}: {error!r}"))
    address = supervisor.employ(lambda: ShadowRegistry(registrations))
    async with supervisor.running(), trio.open_nursery() as nursery:
        nursery.start_soon(lose)
        nursery.start_soon(look_up)
