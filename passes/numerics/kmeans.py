"""k-means of scalars: Lloyd's algorithm on sorted points, for tensors from a handful of weights to hundreds of millions.

On a line a cluster is an interval, so one iteration is K searches in the sorted points and K differences of prefix sums: O(K log n), no
n x K distances. Up to 65,536 values are the points themselves. More are first gathered in as many bins, their counts and sums exact; a bin
is no wider than 1/1024 of its distance from the median, which is fine beside a cluster even where one outlier stretches the range. The
final assignment is exact for every value. Sums are float64, in a fixed order: the same input gives the same bits.

The start is linear: K centroids evenly over [min, max]. Large weights are few and matter most, and unlike a random or a density start
this gives them centroids. Source: Han, Mao and Dally, "Deep Compression", ICLR 2016, section 3.2.
"""

from dataclasses import dataclass

import numpy as np

_BINS = 1 << 16
_CHUNK = 1 << 17  # values worked on at a time: their temporaries stay in the second-level cache
_DROPPED_BITS = 13  # a bin's key keeps 10 bits of mantissa; 32 powers of two on either side of the median have bins
_HALF = _BINS // 2
_SMALLEST = float(np.finfo(np.float32).smallest_subnormal)


def kmeans_1d(values: np.ndarray, k: int, *, iterations: int = 300, keep_zero: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Centroids [K], float32 ascending, and the index of each value's nearest one, uint8, shaped like `values` (float32, finite).

    K <= k <= 256: a centroid that no value uses is dropped. Values with at most k distinct ones are encoded without loss. With `keep_zero`,
    zeros and only zeros decode to 0.0 (a pruned weight stays pruned, a surviving one stays trainable): negative and positive values are
    clustered apart, which takes k >= 3. A value midway between two centroids goes to the upper one.
    Raises ValueError for k out of range and for values that are empty or not finite.
    """
    if not 1 <= k <= 256:
        raise ValueError(f"k must be 1 to 256, not {k}")
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if flat.size == 0 or not np.isfinite([flat.min(), flat.max()]).all():
        raise ValueError("values must be finite, and at least one")
    centroids = distinct_values(flat, k)
    if centroids is not None:
        indices, _ = _assign(flat, centroids[1:])
        return centroids, indices.reshape(values.shape)
    if keep_zero and k < 3:
        raise ValueError("negative, zero and positive values need k of at least 3")
    found = _lloyd(_points(flat, drop_zeros=keep_zero), k - keep_zero, iterations)
    centroids = np.unique(np.append(found, [0.0] * keep_zero).astype(np.float32))
    indices, used = _assign(flat, _boundaries(centroids, keep_zero))
    if not used.all():
        centroids, renumbered = centroids[used], (np.cumsum(used) - 1).clip(0).astype(np.uint8)
        for start in range(0, flat.size, _CHUNK):  # take() needs eight bytes per index for the time it runs
            indices[start : start + _CHUNK] = renumbered.take(indices[start : start + _CHUNK])
    return centroids, indices.reshape(values.shape)


def distinct_values(values: np.ndarray, limit: int) -> np.ndarray | None:
    """The distinct values, ascending (0.0 for both zeros), or None if they are more than `limit` <= 256; the first few mostly tell."""
    flat = values.reshape(-1)
    known = np.unique(flat[:4096])
    for start in range(0, flat.size, _CHUNK):
        if known.size > limit:
            return None
        part = flat[start : start + _CHUNK]
        indices, _ = _assign(part, known[1:])
        known = np.union1d(known, part[part != known[indices]])
    return known + np.float32(0) if known.size <= limit else None  # adding zero turns -0.0 into 0.0


def signal_and_noise(values: np.ndarray, centroids: np.ndarray, indices: np.ndarray) -> tuple[float, float]:
    """Sum of value^2 and sum of (value - centroid)^2, in float64, without a decoded copy."""
    flat, index = values.reshape(-1), indices.reshape(-1)
    signal = noise = 0.0
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float64)
        signal += float(np.square(part).sum())
        noise += float(np.square(part - centroids[index[start : start + _CHUNK]]).sum())
    return signal, noise


class _Points:
    """Points or bins on a line [P], ascending: their ends low <= high, count and mean, float64. `signed`: no cluster reaches across zero.

    Moments are taken about the median and summed up from there to both sides, so that no digits are lost beside an outlier or an offset.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, count: np.ndarray, mean: np.ndarray, signed: bool) -> None:
        self.low, self.high, self.mean, self.signed = low, high, mean, signed
        middle = int(np.searchsorted(np.cumsum(count), count.sum() / 2))
        self.median = mean[middle]
        moments = np.stack([count, count * (mean - self.median), count * (mean - self.median) ** 2])
        left, right = np.cumsum(moments[:, :middle][:, ::-1], axis=1)[:, ::-1], np.cumsum(moments[:, middle:], axis=1)
        self.cumulative = np.concatenate([-left, np.zeros((3, 1)), right], axis=1)
        self.knots = None if low is high else np.stack([low, high], axis=1).reshape(-1)
        self.below_knots = np.repeat(self.cumulative, 2, axis=1)[:, 1:-1]

    def nearest(self, centroids: np.ndarray) -> "_Cells":
        """The clusters of what is nearest to each of the ascending centroids."""
        middle = (centroids[:-1] + centroids[1:]) / 2
        if self.signed:
            middle[(centroids[:-1] < 0) & (centroids[1:] >= 0)] = 0.0
        return self.cells(np.concatenate([self.low[:1], middle, self.high[-1:]]))

    def cells(self, edges: np.ndarray) -> "_Cells":
        """The clusters between neighbouring edges, from the first point to the last.

        A bin that an edge cuts is shared out by interpolation; counted as a whole, it would halt Lloyd's algorithm, whose late steps are
        smaller than a bin.
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
        return _Cells(edges, (self.median + offset).clip(low, high), error, used=count >= 0.5)


@dataclass(frozen=True)
class _Cells:
    """Clusters: their edges [K+1], the mean and the squared error [K] of their points, and which have at least half a point."""

    edges: np.ndarray
    mean: np.ndarray
    error: np.ndarray
    used: np.ndarray

    def means(self) -> np.ndarray:
        """Of the clusters that have points, ascending."""
        mean: np.ndarray = self.mean[self.used]
        return mean

    def more_edges(self, number: int) -> np.ndarray:
        """The edges, and `number` more through the means of the clusters of largest error."""
        return np.union1d(self.edges, self.mean[np.argsort(-self.error, kind="stable")[:number]])


def _points(flat: np.ndarray, drop_zeros: bool) -> _Points:
    if flat.size <= _BINS:
        value, count = np.unique(flat[flat != 0] if drop_zeros else flat, return_counts=True)
        position = value.astype(np.float64)
        return _Points(position, position, count.astype(np.float64), position, drop_zeros)
    centre = np.float32(0) if drop_zeros else np.median(flat[:: flat.size // 1024])
    ends = np.array([flat.min(), flat.max()])
    first_key = int(_distance_key(ends, centre)[0].max()) - (_HALF - 1)
    counts, sums = np.zeros(_BINS), np.zeros(_BINS)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        if drop_zeros:
            part = part[part != 0]
        key, negative = _distance_key(part, centre)
        number = np.maximum(key - first_key, 0) + negative
        counts += np.bincount(number, minlength=_BINS)
        sums += np.bincount(number, weights=part, minlength=_BINS)
    ascending = np.concatenate([np.arange(_BINS - 1, _HALF - 1, -1), np.arange(_HALF)])
    filled = ascending[counts[ascending] > 0]
    near, far = (_ends_of_bins(filled, first_key, end, centre).clip(*ends) for end in (0, 1))
    return _Points(np.minimum(near, far), np.maximum(near, far), counts[filled], sums[filled] / counts[filled], drop_zeros)


def _distance_key(part: np.ndarray, centre: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Exponent and upper mantissa bits of each value's distance from the centre (halved: no overflow), and _HALF where below."""
    bits = (part * np.float32(0.5) - centre * np.float32(0.5)).view(np.int32)
    return (bits & 0x7FFFFFFF) >> _DROPPED_BITS, (bits >> 31) & _HALF


def _ends_of_bins(numbers: np.ndarray, first_key: int, end: int, centre: np.float32) -> np.ndarray:
    """The end of each bin that is nearer (0) or farther (1) from the centre, float64. Bin 0 on either side reaches down to the centre."""
    number = numbers % _HALF
    bits = np.where(number + end > 0, (number + first_key + end) << _DROPPED_BITS, 0).astype(np.int32)
    distance = 2 * bits.view(np.float32).astype(np.float64)
    return np.where(numbers < _HALF, centre + distance, centre - distance)


def _lloyd(points: _Points, k: int, iterations: int) -> np.ndarray:
    """Ascending centroids, at most k, float64, after `iterations` or when the error hardly falls any more.

    Lloyd's step, each centroid to the mean of its cluster, takes some K^2 iterations to carry centroids along the line. So a longer step in
    the same direction is tried too, and taken where its error is lower: the error falls as surely, and many times faster.
    """
    if points.mean.size <= k:
        return points.mean
    centroids = np.linspace(points.low[0], points.high[-1], k)
    cells, reach = points.nearest(centroids), 1.0
    for _ in range(iterations):
        moved = cells.means()
        if moved.size < k:  # a centroid that lost all its points goes where it does most good
            centroids = points.cells(cells.more_edges(k - moved.size)).means()
            cells = points.nearest(centroids)
            continue
        error, cells = float(cells.error.sum()), points.nearest(moved)
        further = moved + reach * (moved - centroids)
        centroids, reach, tried = moved, 2 * reach, points.nearest(further)
        in_order = (np.diff(further) > 0).all() and not (points.signed and ((further < 0) != (moved < 0)).any())
        if in_order and tried.error.sum() < cells.error.sum():
            centroids, cells = further, tried
        else:
            reach = 1.0
        if error - cells.error.sum() <= 1e-8 * error:
            break
    return cells.means()


def _boundaries(centroids: np.ndarray, keep_zero: bool) -> np.ndarray:
    """Lowest float32 value [K-1] that belongs to the upper of two neighbours."""
    middle = (centroids[:-1].astype(np.float64) + centroids[1:]) / 2
    boundary = middle.astype(np.float32)
    boundary = np.where(boundary < middle, np.nextafter(boundary, np.float32(np.inf)), boundary)
    if keep_zero:
        zero = int(np.searchsorted(centroids, np.float32(0)))
        boundary[max(zero - 1, 0) : zero] = 0.0
        boundary[zero : zero + 1] = np.nextafter(np.float32(0), np.float32(1))
    return boundary


def _assign(flat: np.ndarray, boundaries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each value, uint8, and which of the K indices occur, bool [K].

    An index is the count of boundaries at or below the value. Counting beats a binary search here even for 255 boundaries: vector
    instructions compare a cache line at a time, and no branch is mispredicted.
    """
    indices = np.zeros(flat.size, np.uint8)
    used = np.zeros(boundaries.size + 1, np.bool_)
    buffer = np.empty(_CHUNK, np.bool_)
    for start in range(0, flat.size, _CHUNK):
        part, index = flat[start : start + _CHUNK], indices[start : start + _CHUNK]
        above = buffer[: part.size]
        for boundary in boundaries:
            np.greater_equal(part, boundary, out=above)
            np.add(index, above.view(np.uint8), out=index)
        if not used.all():
            used |= np.bincount(index, minlength=used.size) > 0
    return indices, used
