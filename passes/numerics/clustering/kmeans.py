"""k-means of scalars, for tensors from a handful of weights to hundreds of millions: Lloyd's algorithm on
sorted points or bins, then an exact assignment of every value.

The default start is linear: K centroids evenly over [min, max]. Large weights are few and matter most, and
unlike a density start (the same number of weights to every centroid) or a random one this gives them
centroids, which Lloyd's algorithm then leaves there. Source: Han, Mao and Dally, "Deep Compression", ICLR
2016, section 3.2. k-means++: Arthur and Vassilvitskii, SODA 2007.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from onnx_lathe.passes.numerics.clustering.entropy_constrained import cheapest, entropy_constrained
from onnx_lathe.passes.numerics.clustering.mantissa import round_mantissa
from onnx_lathe.passes.numerics.clustering.points import CHUNK, Cells, Points, chunks, gather
from onnx_lathe.passes.numerics.clustering.segmentation import optimal_centroids

STARTS = ("linear", "density", "kmeans++")
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Rule:
    """How shared values are chosen.

    start: one of STARTS; exact: the optimum by dynamic programming too, if it is better; tradeoff: relative
    squared error that one bit of a value's code is worth
    (passes/numerics/clustering/entropy_constrained.py), relative to the mean square of the nonzero values;
    mantissa: bits that centroids keep.
    """

    start: str = "linear"
    exact: bool = False
    tradeoff: float = 0.0
    iterations: int = 300
    seed: int = 0
    mantissa: int | None = None


@dataclass(frozen=True)
class Quantizer:
    """Centroids [K], float32 ascending, and the lowest value [K - 1] that belongs to the upper one of two
    neighbours.

    `nearest_counts` is how many values each shared value would stand for at a tradeoff of 0 (zeros not
    counted where they are kept apart).
    """

    centroids: np.ndarray
    boundaries: np.ndarray
    nearest_counts: np.ndarray


@dataclass(frozen=True)
class Encoded:
    """Values as centroids [K] and uint8 indices shaped like each of the arrays; every centroid is used.
    `nearest_counts`: see Quantizer.
    """

    centroids: np.ndarray
    indices: list[np.ndarray]
    nearest_counts: np.ndarray

    def counts(self) -> np.ndarray:
        """Values that each centroid stands for."""
        return np.sum(
            [
                np.bincount(part, minlength=self.centroids.size)
                for part in chunks([i.reshape(-1) for i in self.indices])
            ],
            axis=0,
        )


def kmeans_1d(
    values: np.ndarray, k: int, *, iterations: int = 300, keep_zero: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids [K], float32 ascending, and the index of each value's nearest one, uint8, shaped like
    `values` (float32, finite).

    By Lloyd's algorithm from the linear start; `encode` tells the rest.
    """
    encoded = encode([values], k, Rule(iterations=iterations), keep_zero)
    return encoded.centroids, encoded.indices[0]


def encode(
    arrays: Sequence[np.ndarray], k: int, rule: Rule, keep_zero: bool = False, start: np.ndarray | None = None
) -> Encoded:
    """The values of all arrays (float32, finite) by the centroids of one codebook. `start`: see
    make_quantizer.

    K <= k <= 256: a centroid that no value uses is dropped. Without a tradeoff at most k distinct values
    are encoded without loss, and a value midway between two centroids goes to the upper one. With
    `keep_zero`, zeros and only zeros decode to 0.0 (a pruned weight stays pruned, a surviving one stays
    trainable): negative and positive values are clustered apart, which takes k >= 3. Raises ValueError for
    k out of range and for values that are empty or not finite.
    """
    flat = [np.ascontiguousarray(array, np.float32).reshape(-1) for array in arrays]
    quantizer = make_quantizer(flat, k, rule, keep_zero, start)
    centroids, boundaries = quantizer.centroids, quantizer.boundaries
    assigned = [assign(part, boundaries) for part in flat]
    indices, used = [index for index, _ in assigned], reduce(np.logical_or, (part for _, part in assigned))
    if not used.all():
        centroids, renumbered = centroids[used], (np.cumsum(used) - 1).clip(0).astype(np.uint8)
        for index in chunks(indices):  # take() needs eight bytes per index for the time it runs
            index[:] = renumbered.take(index)
    shaped = [index.reshape(np.shape(array)) for index, array in zip(indices, arrays, strict=True)]
    return Encoded(centroids, shaped, quantizer.nearest_counts)


def make_quantizer(
    flat: Sequence[np.ndarray], k: int, rule: Rule, keep_zero: bool, start: np.ndarray | None = None
) -> Quantizer:
    """The centroids for flat float32 arrays. `start`: those of a similar task, from which few steps are
    left; instead of the rule's start.

    Raises ValueError as `encode` does.
    """
    if not 1 <= k <= 256:
        raise ValueError(f"k must be 1 to 256, not {k}")
    filled = [part for part in flat if part.size]
    if not filled or not np.isfinite([(part.min(), part.max()) for part in filled]).all():
        raise ValueError("values must be finite, and at least one")
    distinct = distinct_values(filled, k)
    if distinct is not None and (rule.tradeoff == 0 or distinct.size <= 2):
        centroids = np.unique(round_mantissa(distinct, rule.mantissa))
        return Quantizer(centroids, _lowest_above(_middles(centroids), centroids, keep_zero), np.empty(0))
    if keep_zero and k < 3:
        raise ValueError("negative, zero and positive values need k of at least 3")
    points = gather(filled, drop_zeros=keep_zero)
    price = rule.tradeoff * mean_square(filled) if rule.tradeoff else 0.0
    found, prices, counts = _centroids(points, k - keep_zero, rule, price, start)
    centroids, kept = np.unique(round_mantissa(found.astype(np.float32), rule.mantissa), return_index=True)
    edges = _middles(centroids)
    if price:
        live, edges = cheapest(centroids.astype(np.float64), prices[kept], signed=keep_zero)
        centroids = centroids[live]
    if keep_zero:
        negative = int(np.searchsorted(centroids, np.float32(0)))
        centroids, edges = np.insert(centroids, negative, 0), np.insert(edges, max(negative - 1, 0), 0)
    return Quantizer(centroids, _lowest_above(edges, centroids, keep_zero), counts)


def mean_square(flat: Sequence[np.ndarray]) -> float:
    """Of the values that are not zero; 0 without one."""
    square = count = 0.0
    for part in chunks(flat):
        square += float(np.square(part, dtype=np.float64).sum())
        count += np.count_nonzero(part)
    return square / count if count else 0.0


def distinct_values(arrays: Sequence[np.ndarray], limit: int) -> np.ndarray | None:
    """The distinct values, ascending (0.0 for both zeros), or None if they are more than `limit` <= 256;
    the first few mostly tell.
    """
    flat = [array.reshape(-1) for array in arrays]
    known = np.unique(np.concatenate([part[:4096] for part in flat]))
    for part in chunks(flat):
        if known.size > limit:
            return None
        indices, _ = assign(part, known[1:])
        known = np.union1d(known, part[part != known[indices]])
    return known + np.float32(0) if known.size <= limit else None  # adding zero turns -0.0 into 0.0


def signal_and_noise(values: np.ndarray, centroids: np.ndarray, indices: np.ndarray) -> tuple[float, float]:
    """Sum of value^2 and sum of (value - centroid)^2, in float64, without a decoded copy."""
    flat, index = values.reshape(-1), indices.reshape(-1)
    signal = noise = 0.0
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK].astype(np.float64)
        signal += float(np.square(part).sum())
        noise += float(np.square(part - centroids[index[start : start + CHUNK]]).sum())
    return signal, noise


def _centroids(
    points: Points, k: int, rule: Rule, price: float, start: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ascending centroids, the price of each one's code, and how many points are nearest to each without a
    price; float64.

    With a price, steps end in the nearest of many optima, where all codes may be equally long: so fewer
    centroids are started from, too.
    """
    first = _start(points, k, rule) if start is None else _of_both_signs(points, start, k)
    starts = [first, optimal_centroids(points, k)] if rule.exact else [first]
    plain = min((_lloyd(points, k, rule.iterations, one) for one in starts), key=_error)
    if not price:
        return plain.means(), np.zeros(np.count_nonzero(plain.used)), plain.counts()
    starts = [first, plain.means()]
    if start is None:
        starts += [_start(points, k >> halved, rule) for halved in range(1, k.bit_length() - points.signed)]
    if rule.exact:
        starts.append(optimal_centroids(points, k, price))
    best = min(
        (entropy_constrained(points, one, price, rule.iterations) for one in starts),
        key=lambda coded: coded.cost,
    )
    return best.centroids, best.prices, plain.counts()


def _error(cells: Cells) -> float:
    return float(cells.error.sum())


def _start(points: Points, k: int, rule: Rule) -> np.ndarray:
    """At most k ascending centroids to begin with, float64; of both signs if signed points are, for which k
    is at least 2.
    """
    if points.mean.size <= k:
        return points.mean
    if rule.start == "linear":
        return np.linspace(points.low[0], points.high[-1], k)
    if rule.start == "density":
        summed = np.cumsum(points.count)
        return _of_both_signs(
            points, np.unique(points.mean[np.searchsorted(summed, summed[-1] * (np.arange(k) + 0.5) / k)]), k
        )
    return _of_both_signs(points, _far_apart(points, k, rule.seed), k)


def _far_apart(points: Points, k: int, seed: int) -> np.ndarray:
    """k-means++: one point after another by chance, in proportion to its squared distance from those chosen
    so far.
    """
    summed = np.cumsum(points.count)
    generator = np.random.default_rng(seed)
    centroids = points.mean[[np.searchsorted(summed, generator.random() * summed[-1], side="right")]]
    distance = np.square(points.mean - centroids[0])
    while centroids.size < k:
        summed = np.cumsum(points.count * distance)
        if summed[-1] == 0:
            break
        chosen = points.mean[np.searchsorted(summed, generator.random() * summed[-1], side="right")]
        centroids = np.append(centroids, chosen)
        distance = np.minimum(distance, np.square(points.mean - chosen))
    return np.unique(centroids)


def _of_both_signs(points: Points, centroids: np.ndarray, k: int) -> np.ndarray:
    """The centroids, one of them moved where signed points of one sign had none: a cluster must not reach
    across zero.
    """
    if points.signed and points.mean[0] < 0 < centroids[0]:
        return np.append(points.mean[0], centroids[1 - k :])
    if points.signed and centroids[-1] < 0 < points.mean[-1]:
        return np.append(centroids[: k - 1], points.mean[-1])
    return centroids


def _lloyd(points: Points, k: int, iterations: int, start: np.ndarray) -> Cells:
    """Clusters of at most k centroids, after `iterations` or when the error hardly falls any more.

    Lloyd's step, each centroid to the mean of its cluster, takes some K^2 iterations to carry centroids
    along the line. So a longer step in the same direction is tried too, and taken where its error is lower:
    the error falls as surely, and many times faster.
    """
    if points.mean.size <= k:
        return points.nearest(points.mean)
    centroids = start
    cells, reach = points.nearest(centroids), 1.0
    for _ in range(iterations):
        moved = cells.means()
        if moved.size < k:  # a centroid that lost all its points goes where it does most good
            centroids = points.cells(cells.more_edges(k - moved.size)).means()
            cells = points.nearest(centroids)
            continue
        error, cells = _error(cells), points.nearest(moved)
        further = moved + reach * (moved - centroids)
        centroids, reach, tried = moved, 2 * reach, points.nearest(further)
        in_order = (np.diff(further) > 0).all() and not (
            points.signed and ((further < 0) != (moved < 0)).any()
        )
        if in_order and _error(tried) < _error(cells):
            centroids, cells = further, tried
        else:
            reach = 1.0
        if error - _error(cells) <= 1e-8 * error:
            break
    return cells


def _middles(centroids: np.ndarray) -> np.ndarray:
    exact = centroids.astype(np.float64)
    middles: np.ndarray = (exact[:-1] + exact[1:]) / 2
    return middles


def _lowest_above(edges: np.ndarray, centroids: np.ndarray, keep_zero: bool) -> np.ndarray:
    """The edges [K - 1] between ascending centroids as the lowest float32 values that are not below them.

    With `keep_zero` the interval of the zero among the centroids, if it is there, is zero alone; if not,
    edges are as without it.
    """
    boundary = edges.clip(-_LARGEST, _LARGEST).astype(np.float32)
    boundary = np.where(boundary < edges, np.nextafter(boundary, np.float32(np.inf)), boundary)
    zero, least = int(np.searchsorted(centroids, np.float32(0))), np.nextafter(np.float32(0), np.float32(1))
    if keep_zero and zero < centroids.size and centroids[zero] == 0:
        boundary[max(zero - 1, 0) : zero] = 0.0
        boundary[zero : zero + 1] = least
        boundary[zero:] = np.maximum(boundary[zero:], least)
    return boundary


def assign(flat: np.ndarray, boundaries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each value, uint8, and which of the K indices occur, bool [K].

    An index is the count of boundaries at or below the value. Counting beats a binary search here even for
    255 boundaries: vector instructions compare a cache line at a time, and no branch is mispredicted.
    """
    indices = np.zeros(flat.size, np.uint8)
    used = np.zeros(boundaries.size + 1, np.bool_)
    buffer = np.empty(CHUNK, np.bool_)
    for start in range(0, flat.size, CHUNK):
        part, index = flat[start : start + CHUNK], indices[start : start + CHUNK]
        above = buffer[: part.size]
        for boundary in boundaries:
            np.greater_equal(part, boundary, out=above)
            np.add(index, above.view(np.uint8), out=index)
        if not used.all():
            used |= np.bincount(index, minlength=used.size) > 0
    return indices, used
