"""Activating, resending and looking: limits before the hash, what a wrong code costs, budgets, and status addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from uuid import uuid4

import pytest
from trio.testing import wait_all_tasks_blocked

from actors.domain import errors
from actors.domain.mail import MailState
from actors.domain.user import LOOKS, State
from actors.kit.mailbox import NotAccepted
from actors.ports import StoreUnavailable
from tests.fakes.callers import callers, refused
from tests.fakes.flows import EMAIL, LIMITS, PASSWORD, Flows, client
from tests.fakes.hashing import DUMMY

UNLIMITED = replace(LIMITS, activate=None, password=None, password_client=None, basic=None, codes_client=None)
WRONG, BOB = "wrong one", "bob@example.com"


@pytest.fixture
async def flows() -> AsyncIterator[Flows]:
    """Return flows in which Ada is pending."""
    async with Flows.running() as flows:
        await flows.register()
        yield flows


@pytest.fixture
async def unlimited() -> AsyncIterator[Flows]:
    """Return the same without limits."""
    async with Flows.running(UNLIMITED) as flows:
        await flows.register()
        yield flows


# -- activate


async def test_the_code_activates(flows: Flows) -> None:
    """Under any case of the address, before the mail's acceptance is written; after that whatever code is sent."""
    activated = await flows.call("activate", await flows.code(), email=EMAIL.upper())
    profile = await flows.call("profile")
    for account in (activated, profile):
        assert (account.email, account.is_activated, account.activated_at) == (EMAIL, True, flows.clock.now)
    for code in ("000000", await flows.code(), "111111", "222222"):
        await refused(errors.AlreadyActivated, flows.call("activate", code))
    await refused(errors.AlreadyActivated, flows.call("resend"))


async def test_of_parallel_activations_one_succeeds(unlimited: Flows) -> None:
    """The others hear AlreadyActivated, and nobody hears of a wrong code."""
    async with callers() as racers:
        for _ in range(16):
            racers.call(unlimited.call, "activate", await unlimited.code())
    assert racers.heard.count(errors.AlreadyActivated) == 15


async def test_a_wrong_code_costs_an_attempt_and_the_fifth_kills(unlimited: Flows) -> None:
    """The attempts are counted down to 0; then even the right code is dead, until a resend can be had."""
    for left in (4, 3, 2, 1, 0):
        wrong = await refused(errors.WrongCode, unlimited.call("activate", await unlimited.wrong_code()))
        assert (wrong.attempts_left, wrong.superseded) == (left, False)
    unlimited.clock.advance(10)
    dead = await refused(errors.CodeAttemptsExhausted, unlimited.call("activate", await unlimited.code()))
    assert dead.retry_after == 20


async def test_a_dead_code_says_when_its_client_can_have_another() -> None:
    """When the cool-down is over, or the client's own hour: waiting that long is enough."""
    async with Flows.running(replace(LIMITS, activate=None)) as flows:
        await flows.register()
        for wait in (30, 30, 3540):
            for _ in range(5):
                await refused(errors.WrongCode, flows.call("activate", await flows.wrong_code()))
            dead = await refused(errors.CodeAttemptsExhausted, flows.call("activate", await flows.code()))
            assert dead.retry_after == pytest.approx(wait, abs=1)
            flows.clock.advance(dead.retry_after)
            await flows.call("resend")


async def test_a_code_expires_a_minute_after_its_acceptance(unlimited: Flows) -> None:
    """At 59 seconds a wrong code is wrong, at 60 the right one is late; wrong and late look the same then."""
    unlimited.accounts.mail_is(MailState.ACCEPTED)
    unlimited.clock.advance(59)
    await refused(errors.WrongCode, unlimited.call("activate", await unlimited.wrong_code()))
    unlimited.clock.advance(1)
    for code in (await unlimited.code(), await unlimited.wrong_code()):
        await refused(errors.CodeExpired, unlimited.call("activate", code))


async def test_the_older_code_lives_until_the_newer_mail_is_accepted(unlimited: Flows) -> None:
    """Then it is told as superseded and costs nothing: a person who typed it keeps all attempts."""
    old = await unlimited.code()
    unlimited.accounts.mail_is(MailState.ACCEPTED)
    unlimited.clock.advance(30)
    await unlimited.call("resend")
    unlimited.accounts.mail_is(MailState.ACCEPTED)
    for _ in range(7):
        wrong = await refused(errors.WrongCode, unlimited.call("activate", old))
        assert (wrong.superseded, wrong.attempts_left) == (True, 5)
    old = await unlimited.code()
    unlimited.clock.advance(30)
    await unlimited.call("resend")
    await unlimited.call("activate", old)


async def test_a_registration_in_between_ends_the_old_password(unlimited: Flows) -> None:
    """Replaced while its password is being checked, the account is not activated by the old one."""
    code = await unlimited.code()
    unlimited.hashing.during = lambda: unlimited.accounts.replace_password(b"another's")
    await refused(errors.InvalidCredentials, unlimited.call("activate", code))
    account = await unlimited.account()
    assert (account.activated_at, account.password_hash) == (None, b"another's")


async def test_an_account_that_never_holds_still_is_given_up(flows: Flows) -> None:
    """After some looks the client may repeat, instead of waiting for ever; its code is given back."""
    flows.clock.advance(30)
    flows.accounts.changed = 2 * LOOKS
    await refused(NotAccepted, flows.call("activate", await flows.code()))
    await refused(NotAccepted, flows.call("resend"))
    assert flows.accounts.changed == 0
    await flows.call("resend")
    flows.accounts.changed = 1
    await flows.call("activate", await flows.code())


# -- passwords and limits


async def test_unknown_and_wrong_are_the_same_after_the_same_work(flows: Flows) -> None:
    """One check each, of the dummy's cost where there is no hash or bcrypt cannot take the password."""
    stored = (await flows.account()).password_hash
    unknown = [(BOB, PASSWORD), ("no address", PASSWORD), (EMAIL, "x" * 73), (EMAIL, "nul\0inside")]
    for email, password in ((EMAIL, WRONG), *unknown):
        call = flows.call("activate", "123456", email=email, password=password)
        wrong = await refused(errors.InvalidCredentials, call)
        assert (str(wrong), wrong.args) == ("", ())
        flows.clock.advance(61)  # past the limits of wrong passwords
    assert flows.hashing.checked == [stored, *[DUMMY] * 4]
    flows.hashing.accept_all = True  # whatever the dummy was made of, an unknown address is unknown
    await refused(errors.InvalidCredentials, flows.call("profile", email=BOB))


@pytest.mark.parametrize("flow", [["activate", "123456"], ["resend"], ["progress"], ["profile"]])
async def test_wrong_passwords_are_limited_before_the_hash_over_every_call(flows: Flows, flow: list[str]) -> None:
    """Three a minute for a client and an address; the fourth costs no hash, even when it is right."""
    for left in (2, 1, 0):
        seen = client()
        await refused(errors.InvalidCredentials, flows.call("profile", password=WRONG, by=seen))
        latest = {reading.rule.name: reading.remaining for reading in seen.readings}
        assert latest == {"password": left, "password-client": 27 + left}
    full = await refused(errors.RateLimited, flows.call(*flow))
    assert flows.hashing.checks == 3
    await flows.call("profile", by=client("198.51.100.1"))  # nobody at another address locks the owner out
    flows.clock.advance(full.retry_after)
    await flows.call("profile")


async def test_a_client_has_thirty_wrong_passwords_a_minute_over_all_addresses(flows: Flows) -> None:
    """Trying one password at many addresses is limited too."""
    for number in range(30):
        await refused(errors.InvalidCredentials, flows.call("profile", email=f"user{number}@example.com"))
    await refused(errors.RateLimited, flows.call("profile", email=BOB))
    assert flows.hashing.checks == 30


async def test_a_right_password_uses_no_guess(flows: Flows) -> None:
    """Only wrong ones are counted."""
    for password in (*[None] * 9, WRONG, WRONG, None):
        if password is None:
            await flows.call("profile")
        else:
            await refused(errors.InvalidCredentials, flows.call("profile", password=password))


async def test_activations_are_limited_after_the_password_was_right(flows: Flows) -> None:
    """Three a minute for an address, whoever asks; wrong passwords use none, and a refused one costs no attempt."""
    await refused(errors.InvalidCredentials, flows.call("activate", "123456", password=WRONG))
    for _ in range(3):
        await refused(errors.WrongCode, flows.call("activate", await flows.wrong_code()))
    elsewhere = client("198.51.100.1")
    full = await refused(errors.RateLimited, flows.call("activate", await flows.code(), by=elsewhere))
    assert (await flows.account()).mails[0].guesses == 3
    await flows.register(BOB)
    await flows.call("activate", await flows.code(BOB), email=BOB)  # another address has its own
    flows.clock.advance(full.retry_after)
    seen = client()
    await flows.call("activate", await flows.code(), by=seen)
    left = {reading.rule.name: reading.remaining for reading in seen.readings}
    assert left == {"password": 3, "password-client": 30, "activate": 2}


async def test_calls_of_an_address_are_limited_together(flows: Flows) -> None:
    """Twenty a minute for resends, looks and profiles, after the password was right."""
    for _ in range(10):
        await flows.call("profile")
        await flows.call("progress")
    full = await refused(errors.RateLimited, flows.call("profile", by=client("198.51.100.1")))
    await flows.call("activate", await flows.code())
    flows.clock.advance(full.retry_after)
    await flows.call("profile")


# -- resend


async def test_a_resend_owes_a_new_mail_and_wakes_a_worker_for_it(flows: Flows) -> None:
    """Its answer says when the next one can be had, and how many are left today; only the right password gets it."""
    flows.clock.advance(30)
    before = (await flows.account()).mails[0].id
    await refused(errors.InvalidCredentials, flows.call("resend", password=WRONG))
    resend = await flows.call("resend")
    assert (resend.email, resend.resend_in, resend.codes_left_today) == (EMAIL, 30, 8)
    await wait_all_tasks_blocked()
    assert flows.wakeups.woken == [mail.id for mail in flows.accounts.mails]
    assert flows.wakeups.woken == [before, (await flows.account()).mails[0].id]


async def test_a_resend_too_soon_costs_nothing(flows: Flows) -> None:
    """It says how long to wait, and that wait is enough; the client's codes are not used up by it."""
    flows.clock.advance(10)
    for _ in range(5):
        early = await refused(errors.ResendTooSoon, flows.call("resend"))
    assert early.retry_after == 20
    flows.clock.advance(20)
    await flows.call("resend")


async def test_a_client_has_three_codes_an_hour_for_an_address(flows: Flows) -> None:
    """Registration and resends together, and no cool-down makes it wait for longer; another client may still ask."""
    for _ in range(2):
        flows.clock.advance(30)
        await flows.call("resend")
    for since in (60, 90):
        full = await refused(errors.CodesExhausted, flows.call("resend"))
        assert full.retry_after == pytest.approx(3600 - since, abs=1)
        flows.clock.advance(30)
    await flows.call("resend", by=client("198.51.100.1"))


async def test_an_address_has_five_codes_an_hour(unlimited: Flows) -> None:
    """Whoever asks, and the wait that is told is enough."""
    for number in range(4):
        unlimited.clock.advance(30)
        await unlimited.call("resend", by=client(f"198.51.100.{number}"))
    unlimited.clock.advance(30)
    full = await refused(errors.CodesExhausted, unlimited.call("resend"))
    unlimited.clock.advance(full.retry_after)
    await unlimited.call("resend")


async def test_of_parallel_resends_one_is_issued(unlimited: Flows) -> None:
    """The others hear that it is too soon."""
    unlimited.clock.advance(30)
    async with callers() as racers:
        for _ in range(8):
            racers.call(unlimited.call, "resend")
    assert racers.heard.count(errors.ResendTooSoon) == 7
    assert len(unlimited.accounts.mails) == 2


async def test_a_resend_that_the_store_could_not_take_is_given_back(flows: Flows) -> None:
    """A client's codes are not used up by an outage in the middle of the call."""
    flows.clock.advance(30)
    flows.hashing.during = partial(setattr, flows.accounts, "away", StoreUnavailable())
    for _ in range(5):
        await refused(StoreUnavailable, flows.call("resend"))
        flows.accounts.away = None
        await wait_all_tasks_blocked()
    flows.hashing.during = None
    await flows.call("resend")


# -- status


async def test_a_registrations_progress_goes_from_owed_to_active(unlimited: Flows) -> None:
    """State, time, attempts and wait at each step, for the owner and at the status address alike; no hash for it."""
    look = partial(unlimited.signup.progress_of, await unlimited.token())
    seen = await unlimited.call("progress")
    assert (seen.state, seen.code_expires_in, seen.attempts_left, seen.resend_in) == (State.QUEUED, None, 5, 30)
    assert (seen.email, unlimited.hashing.checks) == (EMAIL, 1)
    unlimited.accounts.mail_is(MailState.SENDING)
    assert (await look()).state is State.SENDING
    unlimited.accounts.mail_is(MailState.ACCEPTED)
    unlimited.clock.advance(20)
    seen = await look()
    assert (seen.state, seen.code_expires_in, seen.resend_in, seen.email) == (State.ACCEPTED, 40, 10, None)
    unlimited.clock.advance(40)
    assert (await look()).state is State.EXPIRED
    assert unlimited.hashing.checks == 1
    await unlimited.call("resend")
    assert (await look()).state is State.QUEUED
    unlimited.accounts.mail_is(MailState.DEAD)
    assert (await look()).state is State.UNDELIVERABLE
    unlimited.accounts.mail_is(MailState.SENDING)
    await unlimited.call("activate", await unlimited.code())
    seen = await look()
    assert (seen.state, seen.code_expires_in, seen.attempts_left) == (State.ACTIVATED, None, 0)


async def test_a_status_address_ends(flows: Flows) -> None:
    """After a day, with another registration in its place, and it never began where it is forged."""
    first = await flows.token()
    flows.accounts.mail_is(MailState.DEAD)
    await flows.register()
    for token in (first, "forged", flows.keyring.status_token(uuid4(), 1)):
        await refused(errors.UnknownStatus, flows.signup.progress_of(token))
    flows.clock.advance(86400)
    await flows.signup.progress_of(await flows.token())
    flows.clock.advance(1)
    await refused(errors.UnknownStatus, flows.signup.progress_of(await flows.token()))


async def test_a_registration_whose_mails_are_purged_has_expired(unlimited: Flows) -> None:
    """A month later nothing is left to say, and a new code may be had."""
    unlimited.accounts.forget_mails()
    seen = await unlimited.call("progress")
    assert (seen.state, seen.code_expires_in, seen.attempts_left) == (State.EXPIRED, None, 0)
    await refused(errors.CodeExpired, unlimited.call("activate", "123456"))
    await unlimited.call("resend")
