"""What an account says about itself at one moment of the database's clock."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.domain.mail import MailState
from actors.domain.rate_limit import Rule
from actors.domain.user import Account, CodeMail, State
from tests.fakes.accounts import POLICY
from tests.fakes.clock import NOON

NO_BUDGETS = replace(POLICY, budgets=())


NEWEST = CodeMail(
    id=UUID(int=2),
    registration=2,
    number=2,
    key_id="k1",
    state=MailState.ACCEPTED,
    created_at=NOON,
    accepted_at=NOON,
    expires_at=NOON + timedelta(seconds=60),
    guesses=0,
    counted=True,
)
OLDER = replace(NEWEST, id=UUID(int=1), number=1)
PENDING = Account(
    id=UUID(int=9),
    email="Ada@example.com",
    email_key="ada@example.com",
    password_hash=b"$2b$secret",
    locale="en",
    created_at=NOON,
    registration=2,
    registered_at=NOON,
    activated_at=None,
    version=2,
    mails=(NEWEST,),
    noticed_at=None,
    read_at=NOON,
)
ACTIVE = replace(PENDING, activated_at=NOON)


def pending(*mails: CodeMail) -> Account:
    """Return a pending account with these mails, the newest first."""
    return replace(PENDING, mails=mails)


def mail(state: MailState = MailState.ACCEPTED, *, left: float = 60, guesses: int = 0) -> CodeMail:
    """Return a code mail in a state, with so many seconds left and guesses used."""
    accepted = NOON if state in {MailState.ACCEPTED, MailState.DELIVERED} else None
    return replace(
        NEWEST, state=state, accepted_at=accepted, expires_at=NOON + timedelta(seconds=left), guesses=guesses
    )


CASES = [
    # mail, state, live, held
    (mail(MailState.QUEUED), State.QUEUED, True, True),
    (mail(MailState.SENDING), State.SENDING, True, True),
    (mail(MailState.ACCEPTED), State.ACCEPTED, True, True),
    (mail(MailState.DELIVERED), State.DELIVERED, True, True),
    (mail(MailState.QUEUED, left=0), State.QUEUED, False, True),  # a fresh code replaces it: nobody takes it over
    (mail(MailState.SENDING, left=-9), State.SENDING, False, True),
    (mail(MailState.ACCEPTED, left=0), State.EXPIRED, False, False),
    (mail(MailState.DELIVERED, left=0), State.EXPIRED, False, False),
    (mail(MailState.ACCEPTED, left=0.001), State.ACCEPTED, True, True),
    (mail(MailState.DEAD), State.UNDELIVERABLE, False, False),
    (mail(MailState.SUPERSEDED), State.EXPIRED, False, False),
    *[(mail(state, guesses=5), State.EXHAUSTED, False, False) for state in MailState],
    (mail(MailState.ACCEPTED, guesses=4), State.ACCEPTED, True, True),
]


@pytest.mark.parametrize(("newest", "state", "live", "held"), CASES)
def test_the_newest_mail_says_where_a_registration_stands(
    newest: CodeMail, state: State, *, live: bool, held: bool
) -> None:
    """State, whether its code would activate, and whether the address is taken."""
    account = pending(newest)
    assert account.state(POLICY) is state
    assert account.live_mails(POLICY) == ([newest] if live else [])
    assert account.is_held(POLICY) is held
    assert account.attempts_left(POLICY) == (5 - newest.guesses if live else 0)


@pytest.mark.parametrize("newest", [case[0] for case in CASES])
def test_an_active_account_is_nothing_else(newest: CodeMail) -> None:
    """It is held and has no live code, whatever became of its last mail."""
    account = replace(pending(newest), activated_at=NOON)
    assert (account.state(POLICY), account.is_held(POLICY)) == (State.ACTIVATED, True)
    assert (account.live_mails(POLICY), account.attempts_left(POLICY)) == ([], 0)
    assert account.code_expires_in() is None


def test_mails_of_an_earlier_registration_say_nothing() -> None:
    """They count for the budgets only."""
    old = replace(mail(), registration=1)
    account = pending(old)
    assert (account.current_mails(), account.newest_mail()) == ([], None)
    assert (account.live_mails(POLICY), account.is_held(POLICY)) == ([], False)
    assert (account.state(POLICY), account.code_expires_in()) == (State.EXPIRED, None)
    superseded = replace(old, state=MailState.SUPERSEDED)
    assert pending(superseded).superseded_mails() == []
    assert POLICY.wait(account.code_ages()) == 30


def test_both_codes_of_a_resend_are_live_the_newest_first() -> None:
    """Until the newer mail is accepted, either activates; the best of them says how many attempts are left."""
    newest = replace(mail(MailState.QUEUED), guesses=3)
    older = replace(OLDER, guesses=1)
    account = pending(newest, older)
    assert account.live_mails(POLICY) == [newest, older]
    assert account.attempts_left(POLICY) == 4
    assert account.superseded_mails() == []
    superseded = replace(older, state=MailState.SUPERSEDED)
    assert pending(newest, superseded).superseded_mails() == [superseded]


def test_a_codes_time_is_unknown_until_its_mail_is_accepted() -> None:
    """Then it counts down to 0."""
    assert pending(mail(MailState.QUEUED)).code_expires_in() is None
    assert PENDING.code_expires_in() == 60
    assert replace(PENDING, read_at=NOON + timedelta(seconds=61)).code_expires_in() == 0


@pytest.mark.parametrize(
    ("ages", "cooldown", "budget", "today"),
    [
        ([], 0, 0, 10),
        ([0], 30, 0, 9),
        ([29.5], 0.5, 0, 9),
        ([30], 0, 0, 9),
        ([100, 200, 300, 400], 0, 0, 6),
        ([100, 200, 300, 400, 600], 0, 3000, 5),
        ([100, 200, 300, 400, 3600], 0, 0, 5),
        ([0, 100, 200, 300, 400, 600], 30, 3200, 4),
        ([4000 + number for number in range(9)], 0, 0, 1),
        ([4000 + number for number in range(10)], 0, 86400 - 4009, 0),
        ([4000 + number for number in range(11)], 0, 86400 - 4009, 0),
        ([86400], 0, 0, 10),
    ],
)
def test_codes_have_a_cool_down_and_budgets(ages: list[float], cooldown: float, budget: float, today: int) -> None:
    """Thirty seconds apart, five an hour, ten a day; the longer wait counts, and a reissue counts nowhere."""
    account = pending(
        replace(NEWEST, counted=False), *[replace(NEWEST, created_at=NOON - timedelta(seconds=age)) for age in ages]
    )
    assert POLICY.wait(ages[:1]) == pytest.approx(cooldown)
    assert POLICY.budget_wait(account.code_ages()) == pytest.approx(budget)
    assert POLICY.wait(account.code_ages()) == pytest.approx(max(cooldown, budget))
    assert POLICY.codes_left_today(account.code_ages()) == today


def test_without_a_days_budget_nothing_is_said_of_the_day() -> None:
    """Limits may be off."""
    assert NO_BUDGETS.codes_left_today([0]) is None
    assert replace(POLICY, budgets=(Rule("codes", 5, 3600),)).codes_left_today([0]) is None
    tight = (Rule("codes", 10, 86400), Rule("codes", 3, 86400))
    assert replace(POLICY, budgets=tight).codes_left_today([0]) == 2
    assert NO_BUDGETS.budget_wait([0]) == 0


@given(guesses=st.integers(0, 9), older=st.integers(0, 9), allowed=st.integers(1, 9))
def test_attempts_left_are_never_negative(guesses: int, older: int, allowed: int) -> None:
    """And 0 exactly when no code is live."""
    policy = replace(POLICY, attempts=allowed)
    account = pending(replace(NEWEST, guesses=guesses), replace(OLDER, guesses=older))
    left = account.attempts_left(policy)
    assert left == max(0, allowed - guesses, allowed - older)
    assert (left == 0) == (account.live_mails(policy) == [])
