from __future__ import annotations

from itertools import pairwise

from service.children import LONGEST_DELAY, QUICK_SECONDS, Pace


def test_a_first_and_a_second_fall_cost_no_time() -> None:
    """A process that was killed comes back at once, and once more."""
    pace = Pace()
    assert [pace.fell(1.0), pace.fell(1.0)] == [0.0, 0.0]


def test_a_crash_loop_is_tried_ever_more_seldom_up_to_a_bound() -> None:
    """Delays never shrink within a loop, and never grow beyond what a person would wait."""
    pace = Pace()
    delays = [pace.fell(0.1) for _ in range(100)]
    assert all(earlier <= later for earlier, later in pairwise(delays))
    assert delays[-1] == LONGEST_DELAY


def test_four_kills_in_a_row_are_still_mended_within_two_seconds() -> None:
    """What an operator does by hand is no crash loop."""
    pace = Pace()
    assert sum(pace.fell(1.0) for _ in range(4)) < 1.0


def test_a_life_of_some_length_ends_a_loop() -> None:
    """A process that lived for a while starts with a clean record."""
    pace = Pace()
    for _ in range(20):
        pace.fell(0.1)
    assert pace.fell(QUICK_SECONDS) == 0.0
