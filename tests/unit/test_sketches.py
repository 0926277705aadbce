from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.domain.sketches import LARGEST, SMALLEST, Sketch

ERROR = 0.01
milliseconds = st.floats(SMALLEST, LARGEST)
samples = st.lists(milliseconds, min_size=1, max_size=300)
shares = st.sampled_from([0.5, 0.95, 0.99, 0.0, 1.0])


def sketch_of(values: list[float]) -> Sketch:
    """Return a sketch that has counted the values."""
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


def nearest_rank(values: list[float], share: float) -> float:
    """Return the exact percentile."""
    return sorted(values)[max(1, ceil(share * len(values))) - 1]


@given(samples, shares)
def test_a_quantile_is_within_one_percent_of_the_exact_one(values: list[float], share: float) -> None:
    """Whatever was counted, the answer is at most 1 % off the value at the nearest rank."""
    assert sketch_of(values).quantile(share) == pytest.approx(nearest_rank(values, share), rel=ERROR)


@given(st.lists(samples, min_size=1, max_size=6), shares)
def test_merging_equals_counting_everything_in_one(parts: list[list[float]], share: float) -> None:
    """Sketches of parts, merged in any order, have the counts, extremes and quantiles of the whole."""
    whole = sketch_of([value for part in parts for value in part])
    joined = Sketch()
    for part in reversed(parts):
        joined.merge(sketch_of(part))
    assert joined.buckets == whole.buckets
    assert (joined.count, joined.low, joined.high) == (whole.count, whole.low, whole.high)
    assert joined.total == pytest.approx(whole.total)
    assert joined.quantile(share) == whole.quantile(share)


@given(st.lists(milliseconds, max_size=300))
def test_count_sum_and_extremes_are_exact_and_survive_packing(values: list[float]) -> None:
    """What was packed is what is unpacked, and the figures beside the buckets are exact."""
    sketch = Sketch.unpack(sketch_of(values).pack())
    assert sketch.buckets == sketch_of(values).buckets
    assert sketch.count == len(values)
    assert sketch.total == pytest.approx(sum(values), rel=1e-12)  # from Python 3.12 on `sum` rounds once
    if values:
        assert (sketch.low, sketch.high) == (min(values), max(values))


@given(st.binary(max_size=60))
def test_bytes_that_are_no_sketch_raise_value_error_or_read_as_one(data: bytes) -> None:
    """Foreign bytes never raise anything else, and what they read as answers without an error."""
    try:
        sketch = Sketch.unpack(data)
    except ValueError:
        return
    sketch.quantile(0.5)


@pytest.mark.parametrize("value", [0.0, -5.0, float("nan"), 1e-9])
def test_values_without_meaning_count_as_nearly_nothing(value: float) -> None:
    """Zero, negative values and no-numbers are counted and never raise."""
    sketch = sketch_of([value, 10.0])
    assert sketch.count == 2
    assert sketch.quantile(0.5) == pytest.approx(0, abs=2 * SMALLEST)


def test_an_empty_sketch_has_no_quantile() -> None:
    """Nothing counted, nothing known."""
    assert Sketch().quantile(0.5) is None


def test_infinity_is_cut_to_the_largest_value() -> None:
    """A latency without end is counted in the last bucket."""
    assert sketch_of([float("inf")]).quantile(1.0) == LARGEST


def test_memory_is_bounded_whatever_is_counted() -> None:
    """A sketch holds at most some 1,400 buckets over eleven orders of magnitude, and packs into less than 6 KB."""
    sketch = sketch_of([1.0203**power * SMALLEST for power in range(1500)])
    assert len(sketch.buckets) <= 1397
    assert len(sketch.pack()) < 6000


@pytest.mark.parametrize(
    "data",
    [
        b"short",
        sketch_of([1.0]).pack()[:-1] + b"\x00",  # a bucket that counted nothing
        sketch_of([1.0]).pack()[:-1],  # a bucket without its count
        sketch_of([1.0]).pack() + b"\x80",  # cut off inside a number
        b"\x00\x00\x00\x00\x00\x00\xf8\x7f" + bytes(16),  # a sum that is no number
    ],
)
def test_damaged_bytes_raise_value_error(data: bytes) -> None:
    """What was cut or overwritten is told from a sketch."""
    with pytest.raises(ValueError):  # noqa: PT011 - zip's own among them
        Sketch.unpack(data)
