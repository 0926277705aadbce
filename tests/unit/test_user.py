"""What an account says about itself at one moment of the store's clock."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.domain.code import CodeId
from actors.domain.user import Account, Code, CodeMail, State
from tests.fakes.clock import NOON

ATTEMPTS = 5
NEW, OLD = CodeId("k1", UUID(int=1)), CodeId("k1", UUID(int=2))


def later(seconds: float) -> Code:
    """Return a fresh code that lives so many seconds from now."""
    return Code(NEW, NOON + timedelta(seconds=seconds), 0)


PENDING = Account(
    id=UUID(int=9),
    email="Ada@example.com",
    email_key="ada@example.com",
    password_hash=b"$2b$secret",
    locale="en",
    created_at=NOON,
    registration=UUID(int=8),
    registered_at=NOON,
    activated_at=None,
    code=later(60),
    code_mail=CodeMail.ACCEPTED,
    accepted_at=NOON,
    old_code=None,
    superseded=(),
    resend_at=NOON + timedelta(seconds=30),
    codes_left_today=9,
    read_at=NOON,
)
ACTIVE = replace(PENDING, activated_at=NOON)
EXPIRED = replace(PENDING, code=later(0))
EXHAUSTED = replace(PENDING, code=replace(later(60), attempts=ATTEMPTS))


@pytest.mark.parametrize(
    ("account", "state"),
    [
        (replace(PENDING, code_mail=CodeMail.OWED), State.QUEUED),
        (replace(PENDING, code_mail=CodeMail.SENDING), State.SENDING),
        (PENDING, State.ACCEPTED),
        (replace(PENDING, code_mail=CodeMail.DELIVERED), State.DELIVERED),
        (EXPIRED, State.EXPIRED),
        (replace(EXPIRED, code_mail=CodeMail.DELIVERED), State.EXPIRED),
        (replace(PENDING, code_mail=CodeMail.DEAD), State.UNDELIVERABLE),
        (EXHAUSTED, State.EXHAUSTED),
        (ACTIVE, State.ACTIVATED),
    ],
)
def test_an_account_knows_where_its_registration_stands(account: Account, state: State) -> None:
    """One state for each of what can be."""
    assert account.state(ATTEMPTS) is state


@pytest.mark.parametrize("mail", list(CodeMail))
def test_an_active_account_is_nothing_else(mail: CodeMail) -> None:
    """Whatever became of the last mail and code."""
    assert replace(ACTIVE, code_mail=mail, code=EXHAUSTED.code).state(ATTEMPTS) is State.ACTIVATED


@pytest.mark.parametrize("mail", list(CodeMail))
def test_used_up_attempts_outweigh_the_mail(mail: CodeMail) -> None:
    """A code without attempts is dead on arrival, so its owner is told at once."""
    assert replace(EXHAUSTED, code_mail=mail).state(ATTEMPTS) is State.EXHAUSTED


@pytest.mark.parametrize("mail", [CodeMail.OWED, CodeMail.SENDING])
def test_a_code_that_waits_for_its_mail_does_not_expire(mail: CodeMail) -> None:
    """While a mail is owed the state says so, past the hard cap too: a fresh code will replace the old one."""
    assert replace(EXPIRED, code_mail=mail).state(ATTEMPTS) in {State.QUEUED, State.SENDING}


def test_both_codes_of_a_resend_are_live_the_newest_first() -> None:
    """Until the newer mail is accepted, either activates."""
    old = Code(OLD, NOON + timedelta(seconds=9), 1)
    assert replace(PENDING, old_code=old).live_codes(ATTEMPTS) == [PENDING.code, old]


@pytest.mark.parametrize(
    "old", [None, Code(OLD, NOON, 0), Code(OLD, NOON + timedelta(seconds=9), ATTEMPTS)], ids=["none", "late", "used up"]
)
def test_a_dead_code_is_not_live(old: Code | None) -> None:
    """The moment of expiry itself is too late, and so is the fifth attempt."""
    assert replace(PENDING, old_code=old).live_codes(ATTEMPTS) == [PENDING.code]
    assert replace(EXPIRED, old_code=old).live_codes(ATTEMPTS) == []
    assert replace(EXHAUSTED, old_code=old).live_codes(ATTEMPTS) == []


def test_an_active_account_has_no_live_code() -> None:
    """There is nothing left to guess."""
    assert ACTIVE.live_codes(ATTEMPTS) == []
    assert ACTIVE.attempts_left(ATTEMPTS) == 0


@given(newest=st.integers(0, 9), older=st.integers(0, 9), allowed=st.integers(1, 9))
def test_the_best_live_code_says_how_many_attempts_are_left(newest: int, older: int, allowed: int) -> None:
    """Never negative, and 0 exactly when no code is live."""
    account = replace(
        PENDING, code=replace(later(60), attempts=newest), old_code=Code(OLD, NOON + timedelta(seconds=9), older)
    )
    left = account.attempts_left(allowed)
    assert left == max(0, allowed - newest, allowed - older)
    assert (left == 0) == (account.live_codes(allowed) == [])


def test_the_wait_for_a_resend_ends() -> None:
    """It counts down to now and stays there."""
    assert PENDING.resend_in() == 30
    assert replace(PENDING, read_at=NOON + timedelta(seconds=31)).resend_in() == 0


def test_a_codes_time_is_unknown_until_its_mail_is_accepted() -> None:
    """Then it counts down to 0; on an active account it means nothing."""
    assert replace(PENDING, accepted_at=None, code_mail=CodeMail.OWED).code_expires_in() is None
    assert PENDING.code_expires_in() == 60
    assert replace(PENDING, read_at=NOON + timedelta(seconds=61)).code_expires_in() == 0
    assert ACTIVE.code_expires_in() is None


def test_an_account_shows_neither_address_nor_hash() -> None:
    """Its repr is safe in a log."""
    assert "ada" not in repr(PENDING).casefold()
    assert "$2b$" not in repr(PENDING)
