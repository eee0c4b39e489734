"""Where to clip an activation before it is quantized, from a histogram of its values.

A threshold T gives the levels 0, T/steps, ..., T to magnitudes; larger ones are clipped. A histogram is (edges [B + 1], counts [B]), values
being spread evenly inside a bin. Of 100,000 values the farthest from zero counts as if it lay where the next ones do: in millions of values
a single huge one would decide alone otherwise, since its squared error outweighs all others.
Source: Migacz, "8-bit Inference with TensorRT", GTC 2017; Wu et al., "Integer Quantization for Deep Learning Inference: Principles and
Empirical Evaluation", 2020, section 5.
"""

import numpy as np

FARTHEST = 1e-5
"""Share of the values, farthest from zero, that are drawn in to where the others end."""

BINS = 2048
"""Of the distribution whose loss of information is measured, as Migacz has it."""

CANDIDATES = 24
"""Thresholds tried in each of the two rounds of the search for the least squared error."""

SMALLEST_SHARE = 1 / 16
"""Of the largest magnitude that counts: no threshold is below. Migacz's first candidate, 128 of 2048 bins."""


def squared_error_threshold(edges: np.ndarray, counts: np.ndarray, steps: int) -> float:
    """T of the least expected squared error of rounding and clipping together; 0 if all but FARTHEST values are zero."""
    edges, counts = _magnitudes(edges, counts)
    largest = float(edges[-1])
    if largest == 0:
        return 0.0
    # Magnitudes that are level 0 at every threshold add the same error to each.
    first = int(np.searchsorted(edges, SMALLEST_SHARE * largest / (2 * steps)))
    edges, counts = edges[max(first - 1, 0) :], counts[max(first - 1, 0) :]
    low, high = SMALLEST_SHARE * largest, largest
    for _ in range(2):  # the second round looks closer, between the neighbours of the first one's best
        tried = np.geomspace(low, high, CANDIDATES)
        place = int(np.argmin([squared_error(edges, counts, threshold, steps) for threshold in tried]))
        low, high = tried[max(place - 1, 0)], tried[min(place + 1, CANDIDATES - 1)]
    return float(tried[place])


def squared_error(edges: np.ndarray, counts: np.ndarray, threshold: float, steps: int) -> float:
    """Mean squared error of a value that is rounded to the nearest of -T, ..., 0, T/steps, ..., T.

    In steps, x = k + u where k is the level; the integral of u^2 from 0 to x is k/12 + u^3/3, beyond the last level, too.
    """
    position = edges * (steps / threshold)
    level = np.rint(position).clip(-steps, steps)
    rest = position - level
    integral = level / 12 + rest * rest * rest / 3
    width = np.diff(position)
    # A bin too narrow for the difference of two integrals is a point.
    mean = np.divide(np.diff(integral), width, out=np.square(rest[1:]), where=width > 1e-6)
    return float(counts @ mean / counts.sum() * (threshold / steps) ** 2)


def entropy_threshold(edges: np.ndarray, counts: np.ndarray, steps: int) -> float:
    """T whose quantized distribution tells most about the original one: least Kullback-Leibler divergence of magnitudes.

    0 if all but FARTHEST values are zero.
    """
    edges, counts = _magnitudes(edges, counts)
    largest = float(edges[-1])
    if largest == 0:
        return 0.0
    even = np.diff(np.interp(np.linspace(0.0, largest, BINS + 1), edges, np.append(0.0, np.cumsum(counts))))
    # Zero is a level at every threshold, so the many zeros behind a ReLU say nothing about which is best. Left in, their mass would be
    # smeared over the bins that share their level, an error that falls with T and soon outweighs what is clipped. The first bin therefore
    # counts as its neighbour does, as in NVIDIA's pytorch-quantization.
    even[0] = even[1]
    tried = range(steps + 1, BINS + 1, 16)
    losses = [_information_lost(even, bins, steps + 1) for bins in tried]
    return float(largest * tried[int(np.argmin(losses))] / BINS)


def _information_lost(counts: np.ndarray, bins: int, levels: int) -> float:
    """KL divergence of the first `bins` bins, what is clipped added to the last, from these bins in `levels` levels. Both normalized."""
    kept = counts[:bins]
    reference = kept.copy()
    reference[-1] += counts[bins:].sum()
    starts = np.arange(levels) * bins // levels
    used = kept > 0
    shares = np.add.reduceat(used, starts, dtype=np.int64)
    level = np.add.reduceat(kept, starts) / np.maximum(shares, 1)
    quantized = np.repeat(level, np.diff(starts, append=bins)) * used
    present = reference > 0
    p, q = reference[present], quantized[present]
    if not (p.size and q.all()):  # nothing is kept, or the last bin holds nothing but what is clipped
        return float("inf")
    return float(p @ np.log(p / q) / p.sum() + np.log(q.sum() / p.sum()))


def _magnitudes(edges: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The histogram of |x|, from 0 on, the FARTHEST values drawn in. Edges [0, 0] and a count of 0 if all others are zero.

    The first bin is taken for zero.
    """
    cumulated = np.append(0.0, np.cumsum(counts))
    folded = np.unique(np.append(0.0, np.abs(edges)))
    inside = np.interp(folded, edges, cumulated) - np.interp(-folded, edges, cumulated)
    inside[0], inside[-1] = 0.0, cumulated[-1]
    last = int(np.searchsorted(inside, (1 - FARTHEST) * cumulated[-1]))  # the bin before this edge is the last that counts
    if last <= 1:
        return np.zeros(2), np.zeros(1)
    drawn_in = np.diff(inside[: last + 1])
    drawn_in[-1] += cumulated[-1] - inside[last]
    return folded[: last + 1], drawn_in
