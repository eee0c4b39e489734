"""A histogram of float values whose range need not be known: the bins are those of a floating-point number
with 8 bits of mantissa.

A bin is 2^-8 of its octave, so that one huge value costs the others no resolution, and a value's bin is a
shift of its own bits. An INT8 step of a range is at least four of its widest bins. The idea is that of
HdrHistogram, and of DDSketch (Masson et al., VLDB 2019).
"""

import math

import numpy as np

MANTISSA_BITS = 8

SMALLEST = 2.0**-32
"""A smaller magnitude is counted as zero: the smallest scale of a quantizer is 1e-8, so that it would be
zero anyway.
"""

_SHIFT = 23 - MANTISSA_BITS
_MAGNITUDE = np.int32(0x7FFFFFFF)
_FIRST = int(np.float32(SMALLEST).view(np.int32)) >> _SHIFT
_GOLDEN = (math.sqrt(5) - 1) / 2


class Histogram:
    """Streamed statistics of one tensor. Implements TensorStatistics of passes/core/services.py.

    Minimum and maximum are those of every value. Of more values than `sampled`, the counts take an even
    sample of about that many.
    """

    def __init__(self) -> None:
        self.minimum = math.inf
        self.maximum = -math.inf
        self._above = np.zeros(1, np.int64)  # [0]: zero
        self._below = np.zeros(1, np.int64)  # of negative values, by magnitude; [0] stays empty
        self._added = 0

    def add(self, values: np.ndarray, sampled: int) -> bool:
        """Counts the values of one batch, about `sampled` of them. False, with nothing counted, if one is
        NaN or beyond float32.
        """
        if values.size == 0:
            return True
        low, high = float(values.min()), float(values.max())
        if not (abs(low) <= _LARGEST and abs(high) <= _LARGEST):
            return False
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        # An odd step does not fall in with the sizes of channels and rows, which are mostly even; the
        # golden ratio spreads the places where batches start, so that they do not all show the same pixels.
        step = max(values.size // max(sampled, 1), 1) | 1 if values.size > sampled else 1
        start = int(self._added * _GOLDEN % 1.0 * step)
        self._added += 1
        sample = np.ascontiguousarray(values.reshape(-1)[min(start, values.size - 1) :: step], np.float32)
        bits = sample.view(np.int32)
        index = bits & _MAGNITUDE
        index >>= _SHIFT
        index -= _FIRST - 1
        np.maximum(index, 0, out=index)
        if low < 0:
            negative = (bits < 0) & (index > 0)
            self._below = _sum(self._below, np.bincount(index[negative]))
            index = index[~negative]
        self._above = _sum(self._above, np.bincount(index))
        return True

    @property
    def counted(self) -> int:
        """Values in the histogram."""
        return int(self._above.sum() + self._below.sum())

    def distribution(self) -> tuple[np.ndarray, np.ndarray]:
        """(edges float64 [B + 1], ascending, counts int64 [B]) from the first bin in use to the last;
        nothing beyond minimum..maximum.

        Values that are (nearly) zero have a bin to themselves.
        """
        above, below = np.trim_zeros(self._above, "b"), np.trim_zeros(self._below[1:], "b")
        counts = np.concatenate([below[::-1], above])
        edges = np.concatenate([-_edges(len(below) + 1)[:0:-1], _edges(len(above))[1:]])
        used = np.flatnonzero(counts)
        counts = counts[used[0] : used[-1] + 1]
        return edges[used[0] : used[-1] + 2].clip(self.minimum, self.maximum), counts

    def percentile(self, percent: float) -> tuple[float, float]:
        """Range (low, high) of the central `percent` of the values, to one bin's width; never outside
        minimum..maximum.
        """
        if percent >= 100.0:
            return self.minimum, self.maximum
        edges, counts = self.distribution()
        below = np.concatenate([[0], np.cumsum(counts)])
        outside = (100.0 - percent) / 200.0
        low, high = np.interp([outside * below[-1], (1.0 - outside) * below[-1]], below, edges)
        # Inside an outermost bin nothing is known but the extreme: the many zeros behind a ReLU are zero,
        # not a little more.
        low, high = (edges[0] if low < edges[1] else low), (edges[-1] if high > edges[-2] else high)
        low, high = (min(max(_rounded(end), self.minimum), self.maximum) for end in (low, high))
        return low, high


_LARGEST = float(np.finfo(np.float32).max)


def _rounded(value: float) -> float:
    return 0.0 if abs(value) < SMALLEST else float(value)


def _edges(bins: int) -> np.ndarray:
    """Lower and upper edges of the first bins of one sign, float64 [bins + 1]: 0, SMALLEST, ..."""
    bits = (np.arange(bins, dtype=np.int64) + _FIRST) << _SHIFT
    return np.concatenate([[0.0], bits.astype(np.int32).view(np.float32).astype(np.float64)])


def _sum(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Element by element; the shorter one is filled up with zeros."""
    long, short = (first, second) if len(first) >= len(second) else (second, first)
    long[: len(short)] += short
    return long
