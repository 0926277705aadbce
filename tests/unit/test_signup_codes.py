"""Resending and looking: distances, budgets, and what a status address shows to whoever has it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import trio.testing

from actors.domain.errors import (
    AlreadyActivated,
    CodeAttemptsExhausted,
    CodeExpired,
    CodesExhausted,
    InvalidCredentials,
    RateLimited,
    ResendTooSoon,
    UnknownStatus,
    WrongCode,
)
from actors.domain.mail import MailState
from actors.domain.user import LOOKS, State
from actors.kit.mailbox import NotAccepted
from actors.ports import StoreUnavailable
from tests.fakes.flows import EMAIL, LIMITS, Flows, client, credentials, form

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

UNCOUNTED = replace(LIMITS, codes_client=None, basic=None)


@pytest.fixture
async def flows() -> AsyncIterator[Flows]:
    """Return flows in which Ada has been pending for half a minute."""
    async with Flows.running() as flows:
        await flows.signup.register(client(), form())
        flows.clock.advance(30)
        yield flows


@pytest.fixture
async def uncounted() -> AsyncIterator[Flows]:
    """Return the same, without limits on a client's codes."""
    async with Flows.running(UNCOUNTED) as flows:
        await flows.signup.register(client(), form())
        flows.clock.advance(30)
        yield flows


async def test_a_resend_owes_a_new_mail_and_rings_for_it(flows: Flows) -> None:
    """Its answer says when the next one can be had, and how many are left today."""
    before = (await flows.account()).mails[0].id
    resend = await flows.resend()
    assert (resend.email, resend.resend_in, resend.codes_left_today) == (EMAIL, 30, 8)
    assert (await flows.account()).mails[0].id != before
    await trio.testing.wait_all_tasks_blocked()
    assert flows.wakeups.woken == flows.accounts.mails
    assert len(flows.wakeups.woken) == 2


async def test_a_resend_too_soon_costs_nothing(flows: Flows) -> None:
    """It says how long to wait, and that wait is enough; the client's codes are not used up by it."""
    await flows.signup.resend(client(), credentials())
    flows.clock.advance(10)
    for _ in range(5):
        with pytest.raises(ResendTooSoon) as caught:
            await flows.signup.resend(client(), credentials())
    assert caught.value.retry_after == 20
    flows.clock.advance(20)
    await flows.signup.resend(client(), credentials())


async def test_a_client_has_three_codes_an_hour_for_an_address(flows: Flows) -> None:
    """Registration and resends together, and no cool-down makes it wait for longer; another client may still ask."""
    await flows.signup.resend(client(), credentials())
    flows.clock.advance(30)
    await flows.signup.resend(client(), credentials())
    for since in (60, 90):
        with pytest.raises(CodesExhausted) as caught:
            await flows.signup.resend(client(), credentials())
        assert caught.value.retry_after == pytest.approx(3600 - since, abs=1)
        flows.clock.advance(30)
    await flows.signup.resend(client("198.51.100.1"), credentials())


async def test_a_dead_code_says_when_its_client_can_have_another() -> None:
    """When the cool-down is over, or the client's own hour: waiting that long is enough."""
    async with Flows.running(replace(LIMITS, activate=None)) as flows:
        await flows.signup.register(client(), form())
        for wait in (30, 30, 3540):
            for _ in range(5):
                with pytest.raises(WrongCode):
                    await flows.signup.activate(client(), credentials(), await flows.wrong_code())
            with pytest.raises(CodeAttemptsExhausted) as dead:
                await flows.signup.activate(client(), credentials(), await flows.code())
            assert dead.value.retry_after == pytest.approx(wait, abs=1)
            flows.clock.advance(dead.value.retry_after)
            await flows.signup.resend(client(), credentials())


async def test_an_address_has_five_codes_an_hour(uncounted: Flows) -> None:
    """Whoever asks, and the wait that is told is enough."""
    for number in range(4):
        await uncounted.signup.resend(client(f"198.51.100.{number}"), credentials())
        uncounted.clock.advance(30)
    with pytest.raises(CodesExhausted) as caught:
        await uncounted.signup.resend(client(), credentials())
    uncounted.clock.advance(caught.value.retry_after)
    await uncounted.signup.resend(client(), credentials())


async def test_an_active_account_gets_no_resend(flows: Flows) -> None:
    """There is nothing left to prove."""
    await flows.signup.activate(client(), credentials(), await flows.code())
    with pytest.raises(AlreadyActivated):
        await flows.signup.resend(client(), credentials())


async def test_only_the_right_password_gets_a_resend(flows: Flows) -> None:
    """Nobody has mails sent to others."""
    with pytest.raises(InvalidCredentials):
        await flows.signup.resend(client(), credentials("wrong one"))
    assert len(flows.accounts.mails) == 1


async def test_of_parallel_resends_one_is_issued(uncounted: Flows) -> None:
    """The others hear that it is too soon."""
    heard: list[str] = []

    async def resend() -> None:
        try:
            await uncounted.signup.resend(client(), credentials())
            heard.append("sent")
        except ResendTooSoon:
            heard.append("too soon")

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(resend)
    assert (heard.count("sent"), heard.count("too soon")) == (1, 7)


async def test_a_resend_that_the_store_could_not_take_is_given_back(flows: Flows) -> None:
    """A client's codes are not used up by an outage in the middle of the call."""

    def fail() -> None:
        flows.accounts.away = StoreUnavailable()

    flows.hashing.during = fail
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            await flows.signup.resend(client(), credentials())
        flows.accounts.away = None
        await trio.testing.wait_all_tasks_blocked()
    flows.hashing.during = None
    await flows.signup.resend(client(), credentials())


async def test_calls_of_an_address_are_limited_together() -> None:
    """Twenty a minute for resends, looks and profiles, after the password was right."""
    async with Flows.running() as flows:
        await flows.signup.register(client(), form())
        for _ in range(10):
            await flows.signup.profile(client(), credentials())
            await flows.signup.progress(client(), credentials())
        with pytest.raises(RateLimited) as caught:
            await flows.signup.profile(client("198.51.100.1"), credentials())
        await flows.signup.activate(client(), credentials(), await flows.code())
        flows.clock.advance(caught.value.retry_after)
        await flows.signup.profile(client(), credentials())


async def test_a_registrations_progress_goes_from_owed_to_active() -> None:
    """State, time, attempts and wait at each step, for the owner and at the status address alike."""
    async with Flows.running() as flows:
        token = (await flows.register()).status_token
        seen = await flows.signup.progress(client(), credentials())
        assert (seen.state, seen.code_expires_in, seen.attempts_left, seen.resend_in) == (State.QUEUED, None, 5, 30)
        assert seen.email == EMAIL
        flows.mail_is(MailState.SENDING)
        assert (await flows.signup.progress_of(token)).state is State.SENDING
        flows.mail_is(MailState.ACCEPTED)
        flows.clock.advance(20)
        seen = await flows.signup.progress_of(token)
        assert (seen.state, seen.code_expires_in, seen.resend_in, seen.email) == (State.ACCEPTED, 40, 10, None)
        flows.clock.advance(40)
        assert (await flows.signup.progress_of(token)).state is State.EXPIRED
        await flows.signup.resend(client(), credentials())
        assert (await flows.signup.progress_of(token)).state is State.QUEUED
        flows.mail_is(MailState.DEAD)
        assert (await flows.signup.progress_of(token)).state is State.UNDELIVERABLE
        flows.mail_is(MailState.SENDING)
        await flows.signup.activate(client(), credentials(), await flows.code())
        seen = await flows.signup.progress_of(token)
        assert (seen.state, seen.code_expires_in, seen.attempts_left) == (State.ACTIVATED, None, 0)


async def test_a_status_address_costs_no_hash_and_no_limit() -> None:
    """Pages poll it."""
    async with Flows.running() as flows:
        token = (await flows.register()).status_token
        for _ in range(100):
            await flows.signup.progress_of(token)
    assert flows.hashing.checks == 0


async def test_a_status_address_ends_after_a_day() -> None:
    """It shows nothing after that, and nothing once another registration has replaced its own."""
    async with Flows.running() as flows:
        first = (await flows.register()).status_token
        flows.mail_is(MailState.DEAD)
        second = (await flows.register()).status_token
        with pytest.raises(UnknownStatus):
            await flows.signup.progress_of(first)
        flows.clock.advance(86400)
        await flows.signup.progress_of(second)
        flows.clock.advance(1)
        with pytest.raises(UnknownStatus):
            await flows.signup.progress_of(second)


async def test_an_unknown_status_address_shows_nothing() -> None:
    """Forged, or of a registration that never was."""
    async with Flows.running() as flows:
        for token in ("forged", flows.keyring.status_token(uuid4(), 1)):
            with pytest.raises(UnknownStatus):
                await flows.signup.progress_of(token)


async def test_an_account_that_never_holds_still_is_given_up(flows: Flows) -> None:
    """After some looks the client may repeat, instead of waiting for ever; its code is given back."""
    flows.accounts.changed = 2 * LOOKS
    with pytest.raises(NotAccepted):
        await flows.signup.activate(client(), credentials(), await flows.code())
    with pytest.raises(NotAccepted):
        await flows.signup.resend(client(), credentials())
    assert flows.accounts.changed == 0
    await flows.signup.resend(client(), credentials())
    flows.accounts.changed = 1
    await flows.signup.activate(client(), credentials(), await flows.code())


async def test_a_registration_whose_mails_are_purged_has_expired(uncounted: Flows) -> None:
    """A month later nothing is left to say, and a new code may be had."""
    uncounted.accounts.forget_mails()
    seen = await uncounted.signup.progress(client(), credentials())
    assert (seen.state, seen.code_expires_in, seen.attempts_left) == (State.EXPIRED, None, 0)
    with pytest.raises(CodeExpired):
        await uncounted.signup.activate(client(), credentials(), "123456")
    await uncounted.signup.resend(client(), credentials())
