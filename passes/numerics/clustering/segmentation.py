"""The optimal clusters of points on a line, by dynamic programming.

    D[q, j] = min over i <= j of D[q - 1, i] + cost(i, j)      the best of at most q clusters for the first j points

The squared error of an interval satisfies the quadrangle inequality, so the best i does not fall as j
rises, and divide and conquer finds a row in O(M log M) instead of O(M^2). With a price on code lengths an
interval costs its error + price * n * log2(N / n); that is a sum over clusters still, but not monotone, so
there every i is tried. More points than are affordable are first joined, most finely where the optimal
clusters of many values are: in proportion to the cube root of the density (Panter and Dite, 1951). Up to
that many distinct values the result is the optimum itself.
Source: Wu, "Optimal Quantization by Matrix Searching", Journal of Algorithms 12(4), 1991; Wang and Song,
"Ckmeans.1d.dp", The R Journal 3(2), 2011; with a price: Muresan and Effros, "Quantization as Histogram
Segmentation", IEEE Transactions on Information Theory 54(1), 2008.
"""

from itertools import pairwise

import numpy as np

from onnx_lathe.passes.numerics.clustering.points import Points

AFFORDABLE = 4096
AFFORDABLE_PRICED = 1024
"""Points for which a cluster's cost is looked up M log M times, or M^2 times, for each number of clusters."""


def optimal_centroids(points: Points, k: int, price: float = 0.0) -> np.ndarray:
    """The means [at most k], ascending, float64, of the clusters of least squared error + price * bits.

    Signed points need k of at least 2 if there are points of both signs.
    """
    limit = AFFORDABLE_PRICED if price else AFFORDABLE
    ends = [0, int(np.searchsorted(points.mean, 0.0)) if points.signed else 0, points.mean.size]
    parts = [_Part(points, low, high, k, price, limit) for low, high in pairwise(ends) if low < high]
    if len(parts) == 1:
        return parts[0].centroids(k)
    left, right = parts
    first = 1 + int(np.argmin(left.costs[1:k] + right.costs[k - 1 : 0 : -1]))
    return np.concatenate([left.centroids(first), right.centroids(k - first)])


class _Part:
    """All solutions with 1 to k clusters of the points `low` to `high`."""

    def __init__(self, points: Points, low: int, high: int, k: int, price: float, limit: int) -> None:
        self.median = points.median
        self.ends = points.mean[low], points.mean[high - 1]
        self.sums = points.cumulative[:, _joined(points, low, high, limit)]
        self.price, self.total = price, float(points.count.sum())
        size = self.sums.shape[1]
        best = np.full(size, np.inf)
        best[0] = 0.0
        self.costs = np.full(k + 1, np.inf)
        """Of all the points, by the number of clusters."""
        self.starts: list[np.ndarray] = []
        """For each number of clusters, where the last one begins, by where it ends."""
        table = self._cost(np.arange(size)[:, None], np.arange(size)[None]) if price else None
        for number in range(1, k + 1):
            starts, best = self._row(best) if table is None else _row_of(best, table)
            self.starts.append(starts)
            self.costs[number] = best[-1]

    def centroids(self, k: int) -> np.ndarray:
        edges = [self.sums.shape[1] - 1]
        for starts in reversed(self.starts[:k]):
            edges.append(int(starts[edges[-1]]))
        count, total, _ = np.diff(self.sums[:, np.unique(edges)], axis=1)
        # a tiny mean is rounded away by the median, and with it its sign
        return (self.median + total / count).clip(*self.ends)

    def _cost(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Of the interval of points start to end, infinite where that is negative."""
        count, total, square = self.sums[:, end] - self.sums[:, start]
        filled = np.maximum(count, 0.5)
        error = np.maximum(square - total * total / filled, 0.0)
        if self.price:
            error += self.price * count * np.log2(self.total / filled)
        return np.where(count < 0, np.inf, error)

    def _row(self, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(starts, costs) with one cluster more: first for the last point, then for those half-way between
        points that are done.
        """
        last = before.size - 1
        starts, costs = np.zeros(last + 1, np.int64), np.full(last + 1, np.inf)
        step = 1 << last.bit_length()
        starts[0] = costs[0] = 0
        while step:
            ends = np.arange(step, last + 1, 2 * step)
            if ends.size:
                after = ends + step
                highest = np.where(after <= last, starts[np.minimum(after, last)], ends)
                starts[ends], costs[ends] = self._least(
                    before, ends, starts[ends - step], np.minimum(highest, ends)
                )
            step //= 2
        return starts, costs

    def _least(
        self, before: np.ndarray, ends: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each end the best start from low to high, and its cost."""
        sizes = np.maximum(high - low, 0) + 1
        offsets = np.cumsum(sizes) - sizes
        start = np.arange(int(sizes.sum())) + np.repeat(low - offsets, sizes)
        cost = before[start] + self._cost(start, np.repeat(ends, sizes))
        least = np.minimum.reduceat(cost, offsets)
        hits = np.flatnonzero(cost == np.repeat(least, sizes))
        return start[hits[np.searchsorted(hits, offsets)]], least


def _row_of(before: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cost = before[:, None] + table
    starts = np.argmin(cost, axis=0)
    return starts, np.take_along_axis(cost, starts[None], axis=0)[0]


def _joined(points: Points, low: int, high: int, limit: int) -> np.ndarray:
    """Positions of the edges of at most `limit` groups of the points low to high."""
    if high - low <= limit:
        return np.arange(low, high + 1)
    mean, count = points.mean[low:high], points.count[low:high]
    width = np.gradient(mean) if points.knots is None else (points.high - points.low)[low:high]
    share = np.cumsum(np.cbrt(count * width * width))
    group = np.minimum(share / share[-1] * limit, limit - 1).astype(np.int64)
    return low + np.concatenate([[0], np.flatnonzero(np.diff(group)) + 1, [high - low]])
