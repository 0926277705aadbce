"""Activating: limits before the hash, the same work for the unknown, and what a wrong code costs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from actors.domain.errors import (
    AlreadyActivated,
    CodeAttemptsExhausted,
    CodeExpired,
    InvalidCredentials,
    RateLimited,
    WrongCode,
)
from actors.domain.mail import MailState
from tests.fakes.flows import EMAIL, LIMITS, PASSWORD, Flows, client, credentials, form
from tests.fakes.hashing import DUMMY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

UNLIMITED = replace(LIMITS, activate=None, password=None, password_client=None, basic=None, codes_client=None)


@pytest.fixture
async def flows() -> AsyncIterator[Flows]:
    """Return flows in which Ada is pending."""
    async with Flows.running() as flows:
        await flows.signup.register(client(), form())
        yield flows


@pytest.fixture
async def unlimited() -> AsyncIterator[Flows]:
    """Return the same without limits."""
    async with Flows.running(UNLIMITED) as flows:
        await flows.signup.register(client(), form())
        yield flows


async def test_the_code_activates(flows: Flows) -> None:
    """Under any case of the address, before the mail's acceptance is written."""
    code = await flows.code()
    activation = await flows.signup.activate(client(), credentials(email=EMAIL.upper()), code)
    assert (activation.email, activation.activated_at) == (EMAIL, flows.clock.now)
    profile = await flows.signup.profile(client(), credentials())
    assert (profile.is_activated, profile.activated_at, profile.email) == (True, flows.clock.now, EMAIL)


async def test_an_active_account_hears_so(flows: Flows) -> None:
    """Whatever code is sent, and without using the activations of the minute."""
    await flows.signup.activate(client(), credentials(), await flows.code())
    for code in ("000000", await flows.code(), "111111", "222222"):
        with pytest.raises(AlreadyActivated):
            await flows.signup.activate(client(), credentials(), code)


async def test_of_parallel_activations_one_succeeds(unlimited: Flows) -> None:
    """The others hear AlreadyActivated, and nobody hears of a wrong code."""
    code = await unlimited.code()
    heard: list[str] = []

    async def activate() -> None:
        try:
            await unlimited.signup.activate(client(), credentials(), code)
            heard.append("activated")
        except AlreadyActivated:
            heard.append("already")

    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(activate)
    assert (heard.count("activated"), heard.count("already")) == (1, 15)


async def test_a_wrong_code_costs_an_attempt_and_the_fifth_kills(unlimited: Flows) -> None:
    """The attempts are counted down to 0; then even the right code is dead, until a resend can be had."""
    left = []
    for _ in range(5):
        with pytest.raises(WrongCode) as wrong:
            await unlimited.signup.activate(client(), credentials(), await unlimited.wrong_code())
        assert not wrong.value.superseded
        left.append(wrong.value.attempts_left)
    assert left == [4, 3, 2, 1, 0]
    unlimited.clock.advance(10)
    with pytest.raises(CodeAttemptsExhausted) as dead:
        await unlimited.signup.activate(client(), credentials(), await unlimited.code())
    assert dead.value.retry_after == 20


async def test_a_code_expires_a_minute_after_its_acceptance(unlimited: Flows) -> None:
    """At 59 seconds a wrong code is wrong, at 60 the right one is late; wrong and late look the same then."""
    unlimited.mail_is(MailState.ACCEPTED)
    unlimited.clock.advance(59)
    with pytest.raises(WrongCode):
        await unlimited.signup.activate(client(), credentials(), await unlimited.wrong_code())
    unlimited.clock.advance(1)
    for code in (await unlimited.code(), await unlimited.wrong_code()):
        with pytest.raises(CodeExpired):
            await unlimited.signup.activate(client(), credentials(), code)


async def test_a_superseded_code_is_told_and_costs_nothing(unlimited: Flows) -> None:
    """A person who typed the code of the older mail keeps all attempts."""
    old = await unlimited.code()
    unlimited.clock.advance(30)
    await unlimited.signup.resend(client(), credentials())
    unlimited.mail_is(MailState.ACCEPTED)
    for _ in range(7):
        with pytest.raises(WrongCode) as wrong:
            await unlimited.signup.activate(client(), credentials(), old)
        assert (wrong.value.superseded, wrong.value.attempts_left) == (True, 5)
    await unlimited.signup.activate(client(), credentials(), await unlimited.code())


async def test_the_older_code_activates_while_the_newer_mail_is_owed(unlimited: Flows) -> None:
    """A resend takes nothing away before its mail is accepted."""
    old = await unlimited.code()
    unlimited.mail_is(MailState.ACCEPTED)
    unlimited.clock.advance(30)
    await unlimited.signup.resend(client(), credentials())
    await unlimited.signup.activate(client(), credentials(), old)


async def test_unknown_and_wrong_are_the_same_after_the_same_work(flows: Flows) -> None:
    """One check each: of the dummy's cost for the unknown, of the account's hash for the known."""
    stored = (await flows.account()).password_hash
    for who in (credentials("wrong one"), credentials(email="bob@example.com"), credentials(email="no address")):
        with pytest.raises(InvalidCredentials) as caught:
            await flows.signup.activate(client(), who, "123456")
        assert (str(caught.value), caught.value.args) == ("", ())
    assert flows.hashing.checked == [stored, DUMMY, DUMMY]


@pytest.mark.parametrize("password", ["x" * 73, "nul\0inside"])
async def test_a_password_that_bcrypt_cannot_take_is_a_wrong_one(flows: Flows, password: str) -> None:
    """It costs the same check."""
    with pytest.raises(InvalidCredentials):
        await flows.signup.profile(client(), credentials(password))
    assert flows.hashing.checked == [DUMMY]


async def test_the_dummys_own_password_opens_nothing(flows: Flows) -> None:
    """Whatever the dummy was made of, an unknown address is unknown."""
    flows.hashing.accept_all = True
    with pytest.raises(InvalidCredentials):
        await flows.signup.profile(client(), credentials(email="bob@example.com"))


@pytest.mark.parametrize("flow", ["activate", "resend", "progress", "profile"])
async def test_wrong_passwords_are_limited_before_the_hash_over_every_call(flows: Flows, flow: str) -> None:
    """Three a minute for a client and an address; the fourth costs no hash, even when it is right."""
    call = partial(flows.signup.activate, code="123456") if flow == "activate" else getattr(flows.signup, flow)
    for _ in range(3):
        with pytest.raises(InvalidCredentials):
            await flows.signup.profile(client(), credentials("wrong one"))
    with pytest.raises(RateLimited) as caught:
        await call(client(), credentials())
    assert flows.hashing.checks == 3
    flows.clock.advance(caught.value.retry_after)
    await flows.signup.profile(client(), credentials())


async def test_nobody_at_another_address_locks_the_owner_out(flows: Flows) -> None:
    """Guesses are counted by client and address together."""
    for number in range(40):
        with pytest.raises((InvalidCredentials, RateLimited)):
            await flows.signup.profile(client(f"198.51.100.{number % 5}"), credentials("wrong one"))
    await flows.signup.activate(client(), credentials(), await flows.code())


async def test_a_client_has_thirty_wrong_passwords_a_minute_over_all_addresses(flows: Flows) -> None:
    """Trying one password at many addresses is limited too."""
    for number in range(30):
        with pytest.raises(InvalidCredentials):
            await flows.signup.profile(client(), credentials(email=f"user{number}@example.com"))
    with pytest.raises(RateLimited):
        await flows.signup.profile(client(), credentials(email="user99@example.com"))
    assert flows.hashing.checks == 30


async def test_a_right_password_uses_no_guess(flows: Flows) -> None:
    """Only wrong ones are counted."""
    for _ in range(9):
        await flows.signup.profile(client(), credentials())
    for _ in range(2):
        with pytest.raises(InvalidCredentials):
            await flows.signup.profile(client(), credentials("wrong one"))
    await flows.signup.profile(client(), credentials())


async def test_activations_are_limited_after_the_password_was_right(flows: Flows) -> None:
    """Three a minute for an address, whoever asks; wrong passwords use none, and a refused one costs no attempt."""
    with pytest.raises(InvalidCredentials):
        await flows.signup.activate(client(), credentials("wrong one"), "123456")
    for _ in range(3):
        with pytest.raises(WrongCode):
            await flows.signup.activate(client(), credentials(), await flows.wrong_code())
    with pytest.raises(RateLimited) as caught:
        await flows.signup.activate(client("198.51.100.1"), credentials(), await flows.code())
    assert (await flows.account()).mails[0].guesses == 3
    flows.clock.advance(caught.value.retry_after)
    await flows.signup.activate(client(), credentials(), await flows.code())


async def test_readings_tell_what_the_limits_of_an_activation_say(flows: Flows) -> None:
    """The password's windows and the activations' own."""
    seen = client()
    await flows.signup.activate(seen, credentials(), await flows.code())
    assert {reading.rule.name: reading.remaining for reading in seen.readings} == {
        "password": 3,
        "password-client": 30,
        "activate": 2,
    }


async def test_readings_tell_what_a_wrong_password_has_left(flows: Flows) -> None:
    """The one that was just counted is among them."""
    seen = client()
    with pytest.raises(InvalidCredentials):
        await flows.signup.profile(seen, credentials("wrong one"))
    latest = {reading.rule.name: reading.remaining for reading in seen.readings}
    assert latest == {"password": 2, "password-client": 29}


async def test_a_registration_in_between_ends_the_old_password(unlimited: Flows) -> None:
    """Replaced while its password is being checked, the account is not activated by the old one."""
    code = await unlimited.code()
    old_hash = (await unlimited.account()).password_hash
    new_hash = await unlimited.hashing.hash(b"another horse")
    unlimited.hashing.during = lambda: unlimited.accounts.replace_password(new_hash)
    with pytest.raises(InvalidCredentials):
        await unlimited.signup.activate(client(), credentials(PASSWORD), code)
    account = await unlimited.account()
    assert (account.activated_at, account.password_hash == old_hash) == (None, False)
