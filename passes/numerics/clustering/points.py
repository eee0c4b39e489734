"""Points on a line, sorted, with sums that make a cluster of them cost no more than its two edges.

On a line a cluster is an interval, so its count, mean and error are differences of prefix sums: O(K log n)
for K clusters, no n x K distances. Up to 65,536 values are the points themselves. More are first gathered
in as many bins, their counts and sums exact; a bin is no wider than 1/1024 of its distance from the median,
which is fine beside a cluster even where one outlier stretches the range. Sums are float64, in a fixed
order: the same input gives the same bits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

CHUNK = 1 << 17
"""Values worked on at a time: their temporaries stay in the second-level cache."""
BINS = 1 << 16
_DROPPED_BITS = (
    13  # a bin's key keeps 10 bits of mantissa; 32 powers of two on either side of the median have bins
)
_HALF = BINS // 2
_SMALLEST = float(np.finfo(np.float32).smallest_subnormal)


class Points:
    """Points or bins on a line [P], ascending: their ends low <= high, count and mean, float64. `signed`:
    no cluster reaches across zero.

    Moments are taken about the median and summed up from there to both sides, so that no digits are lost
    beside an outlier or an offset.
    """

    def __init__(
        self, low: np.ndarray, high: np.ndarray, count: np.ndarray, mean: np.ndarray, signed: bool
    ) -> None:
        self.low, self.high, self.count, self.mean, self.signed = low, high, count, mean, signed
        middle = int(np.searchsorted(np.cumsum(count), count.sum() / 2))
        self.median = mean[middle]
        moments = np.stack([count, count * (mean - self.median), count * (mean - self.median) ** 2])
        left, right = (
            np.cumsum(moments[:, :middle][:, ::-1], axis=1)[:, ::-1],
            np.cumsum(moments[:, middle:], axis=1),
        )
        self.cumulative = np.concatenate([-left, np.zeros((3, 1)), right], axis=1)
        self.knots = None if low is high else np.stack([low, high], axis=1).reshape(-1)
        self.below_knots = np.repeat(self.cumulative, 2, axis=1)[:, 1:-1]

    def nearest(self, centroids: np.ndarray) -> "Cells":
        """The clusters of what is nearest to each of the ascending centroids."""
        middle = (centroids[:-1] + centroids[1:]) / 2
        if self.signed:
            middle[(centroids[:-1] < 0) & (centroids[1:] >= 0)] = 0.0
        return self.between(middle)

    def between(self, inner: np.ndarray) -> "Cells":
        """The clusters that the ascending inner edges divide the points into; edges may be beyond the
        points.
        """
        ends = [self.low[:1], self.high[-1:]]
        if inner.size:
            ends = [np.minimum(ends[0], inner[:1]), np.maximum(ends[1], inner[-1:])]
        return self.cells(np.concatenate([ends[0], inner, ends[1]]))

    def cells(self, edges: np.ndarray) -> "Cells":
        """The clusters between neighbouring edges, from the first point to the last.

        A bin that an edge cuts is shared out by interpolation; counted as a whole, it would halt Lloyd's
        algorithm, whose late steps are smaller than a bin.
        """
        if self.knots is None:
            below = self.cumulative[:, np.searchsorted(self.mean, edges)]
        else:
            below = np.array([np.interp(edges, self.knots, row) for row in self.below_knots])
        below[:, 0], below[:, -1] = self.cumulative[:, 0], self.cumulative[:, -1]
        count, total, square = below[:, 1:] - below[:, :-1]
        offset = total / np.maximum(count, 0.5)
        low, high = edges[:-1], edges[1:]
        if self.signed:  # rounding must not turn a mean into zero, which says "pruned"
            low, high = np.where(low == 0, _SMALLEST, low), np.where(high == 0, -_SMALLEST, high)
        error = square - offset * total
        error[error < 1e-14 * square] = 0.0  # that of a single point is nothing but rounding
        return Cells(edges, (self.median + offset).clip(low, high), error, count, used=count >= 0.5)


@dataclass(frozen=True)
class Cells:
    """Clusters: their edges [K+1], the mean, squared error and number [K] of their points, and which have
    at least half a point.
    """

    edges: np.ndarray
    mean: np.ndarray
    error: np.ndarray
    count: np.ndarray
    used: np.ndarray

    def means(self) -> np.ndarray:
        """Of the clusters that have points, ascending."""
        mean: np.ndarray = self.mean[self.used]
        return mean

    def counts(self) -> np.ndarray:
        """Of the clusters that have points."""
        count: np.ndarray = self.count[self.used]
        return count

    def more_edges(self, number: int) -> np.ndarray:
        """The edges, and `number` more through the means of the clusters of largest error."""
        return np.union1d(self.edges, self.mean[np.argsort(-self.error, kind="stable")[:number]])


def gather(arrays: Sequence[np.ndarray], drop_zeros: bool) -> Points:
    """The values of all arrays (flat, float32, finite) as points; with `drop_zeros` without the zeros, and
    signed. One must be left.
    """
    if sum(flat.size for flat in arrays) <= BINS:
        flat = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        value, count = np.unique(flat[flat != 0] if drop_zeros else flat, return_counts=True)
        position = value.astype(np.float64)
        return Points(position, position, count.astype(np.float64), position, drop_zeros)
    centre = np.float32(0) if drop_zeros else _middle(arrays)
    ends = np.array([min(flat.min() for flat in arrays), max(flat.max() for flat in arrays)])
    first_key = int(_distance_key(ends, centre)[0].max()) - (_HALF - 1)
    counts, sums = np.zeros(BINS), np.zeros(BINS)
    for part in chunks(arrays):
        kept = part[part != 0] if drop_zeros else part
        key, negative = _distance_key(kept, centre)
        number = np.maximum(key - first_key, 0) + negative
        counts += np.bincount(number, minlength=BINS)
        sums += np.bincount(number, weights=kept, minlength=BINS)
    ascending = np.concatenate([np.arange(BINS - 1, _HALF - 1, -1), np.arange(_HALF)])
    filled = ascending[counts[ascending] > 0]
    near, far = (_ends_of_bins(filled, first_key, end, centre).clip(*ends) for end in (0, 1))
    return Points(
        np.minimum(near, far),
        np.maximum(near, far),
        counts[filled],
        sums[filled] / counts[filled],
        drop_zeros,
    )


def chunks(arrays: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """All flat arrays, CHUNK values at a time."""
    for flat in arrays:
        for start in range(0, flat.size, CHUNK):
            yield flat[start : start + CHUNK]


def _middle(arrays: Sequence[np.ndarray]) -> np.float32:
    """About the median: that of some thousand values in even steps."""
    step = sum(flat.size for flat in arrays) // 1024
    return np.float32(np.median(np.concatenate([flat[::step] for flat in arrays])))


def _distance_key(part: np.ndarray, centre: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Exponent and upper mantissa bits of each value's distance from the centre (halved: no overflow), and
    _HALF where below.
    """
    bits = (part * np.float32(0.5) - centre * np.float32(0.5)).view(np.int32)
    return (bits & 0x7FFFFFFF) >> _DROPPED_BITS, (bits >> 31) & _HALF


def _ends_of_bins(numbers: np.ndarray, first_key: int, end: int, centre: np.float32) -> np.ndarray:
    """The end of each bin that is nearer (0) or farther (1) from the centre, float64. Bin 0 on either side
    reaches down to the centre.
    """
    number = numbers % _HALF
    bits = np.where(number + end > 0, (number + first_key + end) << _DROPPED_BITS, 0).astype(np.int32)
    distance = 2 * bits.view(np.float32).astype(np.float64)
    return np.where(numbers < _HALF, centre + distance, centre - distance)
