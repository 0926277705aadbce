"""Registering a taken address when codes are short: that it is taken comes first, and is counted like any 409."""

from __future__ import annotations

from functools import partial

import pytest
import trio.testing

from actors.domain.errors import CodesExhausted, EmailTaken, RateLimited
from tests.fakes.flows import EMAIL, KEY, PASSWORD, Flows, credentials, form, visit


async def test_a_client_without_codes_hears_that_the_address_is_taken() -> None:
    """Pending or active: its three codes for the address are used up, and were not what it asked for."""
    async with Flows.running() as flows:
        await flows.signup.register(visit(), form())
        for _ in range(2):
            flows.clock.advance(30)
            await flows.signup.resend(visit(), credentials())
        with pytest.raises(EmailTaken):
            await flows.signup.register(visit(), form())
        await flows.signup.activate(visit(), credentials(), await flows.code())
        seen = visit()
        with pytest.raises(EmailTaken):
            await flows.signup.register(seen, form())
        assert {reading.rule.name: reading.remaining for reading in seen.readings} == {"register": 2}
        for _ in range(2):
            with pytest.raises(EmailTaken):
                await flows.signup.register(visit(), form())
        with pytest.raises(RateLimited):
            await flows.signup.register(visit(), form())
        assert flows.hashing.hashes == 1


async def test_of_many_at_once_from_one_client_one_wins(autojump_clock: trio.testing.MockClock) -> None:
    """The others hear that the address is taken, those too who found its codes reserved by the first ones."""
    async with Flows.running() as flows:
        flows.hashing.seconds = 0.24
        heard: list[type[Exception]] = []

        async def send() -> None:
            try:
                await flows.signup.register(visit(), form())
            except EmailTaken as refusal:
                heard.append(type(refusal))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(send)
        assert heard == [EmailTaken] * 4
        assert len(flows.accounts.mails) == 1
    assert autojump_clock.current_time() < 1


async def test_codes_that_nobody_turns_into_an_account_are_waited_for_in_vain(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Such as those of an account that was deleted: after a moment the client hears that they are used up."""
    async with Flows.running() as flows:
        for _ in range(3):
            await flows.access.code(visit(), KEY)
        with pytest.raises(CodesExhausted) as caught:
            await flows.signup.register(visit(), form())
        assert 2 < autojump_clock.current_time() < 3
        flows.clock.advance(caught.value.retry_after)
        await flows.signup.register(visit(), form())


async def test_strict_about_addresses_codes_are_told_first() -> None:
    """There nobody hears that an address is taken, and an unknown one is as short of codes."""
    for email in (EMAIL, "nobody@example.com"):
        async with Flows.running(strict=True) as flows:
            await flows.signup.register(visit("198.51.100.1"), form())
            register = partial(flows.signup.register, visit(), form(email, PASSWORD))
            for _ in range(3):
                await register()
            with pytest.raises(CodesExhausted):
                await register()
