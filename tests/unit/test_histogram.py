"""The histogram of latencies: what merges, what is exact, and what is 1 % off at most."""

from __future__ import annotations

from math import ceil
from zlib import compress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.domain.histogram import LARGEST, SMALLEST, Histogram

ERROR = 0.01
milliseconds = st.floats(SMALLEST, LARGEST)
samples = st.lists(milliseconds, min_size=1, max_size=300)
shares = st.sampled_from([0.5, 0.95, 0.99, 0.0, 1.0])


def histogram_of(values: list[float]) -> Histogram:
    """Return a histogram that has counted the values."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def nearest_rank(values: list[float], share: float) -> float:
    """Return the exact percentile."""
    return sorted(values)[max(1, ceil(share * len(values))) - 1]


@given(samples, shares)
def test_a_quantile_is_within_one_percent_of_the_exact_one(values: list[float], share: float) -> None:
    """The answer is at most 1 % off the value at the nearest rank."""
    assert histogram_of(values).quantile(share) == pytest.approx(nearest_rank(values, share), rel=ERROR)


@given(st.lists(samples, min_size=1, max_size=6), shares)
def test_merging_equals_counting_everything_in_one(parts: list[list[float]], share: float) -> None:
    """Histogrames of parts, merged in any order, have the counts, extremes and quantiles of the whole."""
    whole = histogram_of([value for part in parts for value in part])
    joined = Histogram()
    for part in reversed(parts):
        joined.merge(histogram_of(part))
    assert joined.buckets == whole.buckets
    assert (joined.count, joined.low, joined.high) == (whole.count, whole.low, whole.high)
    assert joined.total == pytest.approx(whole.total)
    assert joined.quantile(share) == whole.quantile(share)


@given(st.lists(milliseconds, max_size=300))
def test_count_sum_and_extremes_are_exact_and_survive_packing(values: list[float]) -> None:
    """What was packed is what is unpacked, and the figures beside the buckets are exact."""
    histogram = Histogram.unpack(histogram_of(values).pack())
    assert histogram.buckets == histogram_of(values).buckets
    assert histogram.count == len(values)
    assert histogram.total == pytest.approx(sum(values), rel=1e-12)  # from Python 3.12 on `sum` rounds once
    if values:
        assert (histogram.low, histogram.high) == (min(values), max(values))


@given(st.binary(max_size=60).map(compress))
def test_bytes_that_are_no_histogram_raise_value_error_or_read_as_one(data: bytes) -> None:
    """Foreign bytes never raise anything else, and what they read as answers without an error."""
    try:
        histogram = Histogram.unpack(data)
    except ValueError:
        return
    histogram.quantile(0.5)


@pytest.mark.parametrize("value", [0.0, -5.0, float("nan"), 1e-9])
def test_values_without_meaning_count_as_nearly_nothing(value: float) -> None:
    """Zero, negative values and no-numbers are counted and never raise."""
    histogram = histogram_of([value, 10.0])
    assert histogram.count == 2
    assert histogram.quantile(0.5) == pytest.approx(0, abs=2 * SMALLEST)


def test_an_empty_histogram_has_no_quantile() -> None:
    """Without values there is no percentile."""
    assert Histogram().quantile(0.5) is None


def test_infinity_is_cut_to_the_largest_value() -> None:
    """A latency without end is counted in the last bucket."""
    assert histogram_of([float("inf")]).quantile(1.0) == LARGEST


def test_memory_is_bounded_whatever_is_counted() -> None:
    """A histogram holds at most some 1,400 buckets over eleven orders of magnitude, and packs into less than 9 KB."""
    histogram = histogram_of([1.0203**power * SMALLEST for power in range(1500)])
    assert len(histogram.buckets) <= 1397
    assert len(histogram.pack()) < 9000


@pytest.mark.parametrize("data", [b"short", histogram_of([1.0]).pack()[:-1], compress(bytes(23)), compress(bytes(25))])
def test_damaged_bytes_raise_value_error(data: bytes) -> None:
    """Bytes that were cut, or hold something else, are no histogram."""
    with pytest.raises(ValueError, match="not a packed histogram"):
        Histogram.unpack(data)
