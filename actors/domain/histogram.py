"""A histogram of latencies that merges: exact count, sum, minimum and maximum, percentiles within 1 %."""

from __future__ import annotations

import struct
import zlib
from math import ceil, exp, log

GAMMA = 1.02  # bucket i holds (GAMMA^(i-1), GAMMA^i]; its middle is at most (GAMMA-1)/(GAMMA+1) = 0.99 % off
LOG_GAMMA = log(GAMMA)
SMALLEST, LARGEST = 1e-3, 1e9  # milliseconds: a microsecond and eleven days; at most 1,396 buckets lie between them
HEAD = struct.Struct("<ddd")  # total, low and high, ...
BUCKET = struct.Struct("<hI")  # ... then the index and the count of each bucket


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
        """Return some hundreds of bytes that `unpack` reads: half of what they are uncompressed, for 0.1 ms."""
        buckets = b"".join(BUCKET.pack(*bucket) for bucket in self.buckets.items())
        return zlib.compress(HEAD.pack(self.total, self.low, self.high) + buckets, 1)

    @classmethod
    def unpack(cls, data: bytes) -> Histogram:
        """Return the histogram that was packed; raises ValueError when the bytes are none."""
        histogram = cls()
        try:
            plain = zlib.decompress(data)
            histogram.total, histogram.low, histogram.high = HEAD.unpack_from(plain)
            histogram.buckets = dict(BUCKET.iter_unpack(plain[HEAD.size :]))
        except (struct.error, zlib.error):
            msg = "not a packed histogram"
            raise ValueError(msg) from None
        histogram.count = sum(histogram.buckets.values())
        return histogram
