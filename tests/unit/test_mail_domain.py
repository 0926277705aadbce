"""The mail's back-off."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.domain.mail import BACKOFF_SECONDS, backoff


@given(tries=st.integers(1, 10_000), chance=st.floats(0, 1, exclude_max=True))
def test_the_pause_between_attempts_grows_to_a_bound(tries: int, chance: float) -> None:
    """From a second to half a minute, and up to a quarter more, so that retries do not come in step."""
    pause = backoff(tries, chance)
    base = backoff(tries, 0)
    assert base in BACKOFF_SECONDS
    assert base <= pause < base * 1.25 + 1e-9
    assert backoff(tries, 0) <= backoff(tries + 1, 0)


def test_the_first_pauses_are_short() -> None:
    """A code that lives a minute wants its mail soon."""
    assert [backoff(tries, 0) for tries in (1, 2, 3, 100)] == [1, 2, 4, 30]
