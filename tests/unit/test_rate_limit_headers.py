from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.domain.rate_limit import Reading, Rule
from service.http.client import rate_limit_headers

REGISTER = Rule("register", 5, 3600)


def test_one_limit_in_all_its_headers() -> None:
    """A register call with four left says so in the draft's form and in the customary one, rounded up."""
    assert rate_limit_headers([Reading(REGISTER, 4, 3499.2)], 1_800_000_000.5) == {
        "RateLimit-Policy": '"register";q=5;w=3600',
        "RateLimit": '"register";r=4;t=3500',
        "X-RateLimit-Limit": "5",
        "X-RateLimit-Remaining": "4",
        "X-RateLimit-Reset": "1800003500",
    }


def test_no_limits_no_headers() -> None:
    """An answer without a limit carries none of the headers."""
    assert rate_limit_headers([], 0) == {}


def test_the_closest_limit_comes_first() -> None:
    """The fewest remaining requests decide, not the share of the limit; all limits are listed."""
    readings = [Reading(Rule("wide", 60, 60), 9, 10), Reading(REGISTER, 4, 3500)]
    headers = rate_limit_headers(readings, 0)
    assert headers["RateLimit"] == '"register";r=4;t=3500, "wide";r=9;t=10'
    assert headers["RateLimit-Policy"] == '"register";q=5;w=3600, "wide";q=60;w=60'
    assert headers["X-RateLimit-Limit"] == "5"


def test_of_two_full_limits_the_longer_wait_counts() -> None:
    """The reset beside a 429 is the time of its Retry-After: when the last of the full windows has room."""
    readings = [Reading(Rule("minute", 3, 60), 0, 12.5), Reading(Rule("hour", 9, 3600), 0, 1200)]
    headers = rate_limit_headers(readings, 100)
    assert headers["X-RateLimit-Reset"] == "1300"
    assert headers["RateLimit"].startswith('"hour";r=0;t=1200')


def test_names_stand_once() -> None:
    """Of an IPv6 client's two windows of a rule the closer one is shown, as names of policies must be unique."""
    site, delegation = Reading(REGISTER, 4, 10), Reading(Rule("register", 20, 3600), 2, 20)
    assert rate_limit_headers([site, delegation], 0)["RateLimit"] == '"register";r=2;t=20'
    assert rate_limit_headers([site, delegation], 0)["RateLimit-Policy"] == '"register";q=20;w=3600'


def test_the_last_reading_of_a_limit_counts() -> None:
    """A limit that was looked at first and counted later shows as it stands after."""
    assert rate_limit_headers([Reading(REGISTER, 1, 0), Reading(REGISTER, 3, 9)], 0)["X-RateLimit-Remaining"] == "3"


@given(
    st.lists(
        st.builds(
            Reading,
            st.builds(Rule, st.sampled_from(["a", "b-c"]), st.integers(1, 10**6), st.sampled_from([1, 60, 86400])),
            st.integers(0, 10**6),
            st.floats(0, 86400),
        ),
        min_size=1,
    ),
    st.floats(0, 4e9),
)
def test_the_lists_agree(readings: list[Reading], now: float) -> None:
    """Policies and states name the same limits in the same order, and the first one is the customary headers'."""
    headers = rate_limit_headers(readings, now)
    policies, states = headers["RateLimit-Policy"].split(", "), headers["RateLimit"].split(", ")
    assert [policy.partition(";")[0] for policy in policies] == [state.partition(";")[0] for state in states]
    assert len({state.partition(";")[0] for state in states}) == len(states)
    assert f";r={headers['X-RateLimit-Remaining']};" in states[0]
    assert f";q={headers['X-RateLimit-Limit']};" in policies[0]
