"""A histogram of latencies that merges: exact count, sum, minimum and maximum, percentiles within 1 %."""

from __future__ import annotations

import struct
from math import ceil, exp, isnan, log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

GAMMA = 1.02  # bucket i holds (GAMMA^(i-1), GAMMA^i]; its middle is at most (GAMMA-1)/(GAMMA+1) = 0.99 % off
LOG_GAMMA = log(GAMMA)
SMALLEST, LARGEST = 1e-3, 1e9  # milliseconds: a microsecond and eleven days; at most 1,396 buckets lie between them
HEAD = struct.Struct("<ddd")
MASK, MORE = 0x7F, 0x80  # a variable-length integer: seven bits a byte, the high bit says that more follow


class Histogram:
    """Counts of values in buckets of logarithmic width, after DDSketch (Masson, Rim, Lee: VLDB 2019).

    Values below a microsecond count in the lowest bucket. Merging histograms gives what adding all their values to
    one would have given, in any order; so histograms of many workers and minutes answer as one.
    """

    __slots__ = ("buckets", "count", "high", "low", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0.0
        self.low = float("inf")
        self.high = 0.0

    def add(self, value: float) -> None:
        """Count one value; what is negative or no number counts as zero."""
        value = min(value, LARGEST) if value > 0 else 0.0
        index = ceil(log(max(value, SMALLEST)) / LOG_GAMMA)
        self.buckets[index] = self.buckets.get(index, 0) + 1
        self.count += 1
        self.total += value
        self.low = min(self.low, value)
        self.high = max(self.high, value)

    def merge(self, other: Histogram) -> None:
        """Add all that the other has counted."""
        for index, count in other.buckets.items():
            self.buckets[index] = self.buckets.get(index, 0) + count
        self.count += other.count
        self.total += other.total
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)

    def quantile(self, share: float) -> float | None:
        """Return the value at the nearest rank, at most 1 % off above a microsecond; None when nothing was counted."""
        rank = max(1, ceil(share * self.count))
        for index in sorted(self.buckets):
            rank -= self.buckets[index]
            if rank <= 0:
                middle = 2 * exp(index * LOG_GAMMA) / (GAMMA + 1)
                return min(max(middle, self.low), self.high)
        return None

    def pack(self) -> bytes:
        """Return a few hundred bytes that `unpack` reads: total, low and high, then the buckets' gaps and counts."""
        return HEAD.pack(self.total, self.low, self.high) + bytes(_varints(self._numbers()))

    def _numbers(self) -> Iterator[int]:
        last = 0
        for index in sorted(self.buckets):
            gap = index - last
            yield gap * 2 if gap >= 0 else -gap * 2 - 1  # zigzag: only the first gap can be negative
            yield self.buckets[index]
            last = index

    @classmethod
    def unpack(cls, data: bytes) -> Histogram:
        """Return the histogram that was packed; raises ValueError when the bytes are none."""
        histogram = cls()
        if len(data) < HEAD.size:
            msg = "not a packed histogram"
            raise ValueError(msg)
        histogram.total, histogram.low, histogram.high = HEAD.unpack_from(data)
        numbers = _numbers_of(data[HEAD.size :])
        index = 0
        for gap, count in zip(numbers[::2], numbers[1::2], strict=True):
            index += gap // 2 if gap % 2 == 0 else -(gap + 1) // 2
            histogram.buckets[index] = count
            histogram.count += count
        if isnan(histogram.total) or not all(histogram.buckets.values()):
            msg = "not a packed histogram"
            raise ValueError(msg)
        return histogram


def _varints(numbers: Iterable[int]) -> Iterator[int]:
    for number in numbers:
        rest = number
        while rest > MASK:
            yield rest & MASK | MORE
            rest >>= 7
        yield rest


def _numbers_of(data: bytes) -> list[int]:
    numbers: list[int] = []
    number = shift = 0
    for byte in data:
        number |= (byte & MASK) << shift
        shift += 7
        if byte < MORE:
            numbers.append(number)
            number = shift = 0
    if shift:
        msg = "not a packed histogram: cut off"
        raise ValueError(msg)
    return numbers
