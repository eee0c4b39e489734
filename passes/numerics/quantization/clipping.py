"""Where to clip an activation before it is quantized, from a histogram of its values.

A threshold T clips values to -T..T, and to what there is of them; `levels_of` tells which levels a target
then has. A histogram is (edges [B + 1], counts [B]), values being spread evenly inside a bin. Of 100,000
values the farthest from zero counts as if it lay where the next ones do: in millions of values a single
huge one would decide alone otherwise, since its squared error outweighs all others.
Source: Migacz, "8-bit Inference with TensorRT", GTC 2017; Wu et al., "Integer Quantization for Deep
Learning Inference: Principles and Empirical Evaluation", 2020, section 5.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from onnx_lathe.passes.numerics.quantization import affine

FARTHEST = 1e-5
"""Share of the values, farthest from zero, that are drawn in to where the others end."""

BINS = 2048
"""Of the distribution whose loss of information is measured, as Migacz has it."""

CANDIDATES = 24
"""Thresholds tried in each of the two rounds of the search for the least squared error."""

SMALLEST_SHARE = 1 / 16
"""Of the largest magnitude that counts: no threshold is below. Migacz's first candidate, 128 of 2048 bins."""

MOST_ERROR = 1.5
"""The threshold of the least information lost has at most this many times the least squared error.

Information is lost where many values are, however small, and the measure knows nothing of how far a clipped
value is moved: a narrow peak of values (the constant that a background becomes, what a hard swish makes of
negative values) asks for fine levels there, and by itself would clip what carries the signal, at signal to
noise ratios down to 3 dB.
"""


class Levels(NamedTuple):
    """Multiples `first` to `last` of `scale`, 0 among them."""

    scale: float
    first: int
    last: int


LevelsOf = Callable[[float, float], Levels]
"""The levels for a range low..high."""


def symmetric_levels(low: float, high: float) -> Levels:
    """The levels of INT8 with zero-point 0, the canonical form."""
    return Levels(max(-low, high) / affine.LEVELS, -affine.LEVELS, affine.LEVELS)


def unsigned_levels(low: float, high: float) -> Levels:
    """The levels of UINT8 with a zero-point."""
    scale, zero = affine.unsigned_scale(low, high)
    return Levels(float(scale), -int(zero), affine.UNSIGNED_LEVELS - int(zero))


def squared_error_threshold(edges: np.ndarray, counts: np.ndarray, levels_of: LevelsOf) -> float:
    """T of the least expected squared error of rounding and clipping together; 0 if all but FARTHEST values
    are zero.
    """
    largest = float(_magnitudes(edges, counts)[0][-1])
    if largest == 0:
        return 0.0
    low, high = SMALLEST_SHARE * largest, largest
    for _ in range(2):  # the second round looks closer, between the neighbours of the first one's best
        tried = np.geomspace(low, high, CANDIDATES)
        place = int(np.argmin(_squared_errors(edges, counts, largest, tried, levels_of)))
        low, high = tried[max(place - 1, 0)], tried[min(place + 1, CANDIDATES - 1)]
    return float(tried[place])


def squared_error(edges: np.ndarray, counts: np.ndarray, levels: Levels) -> float:
    """Mean squared error of a value that is rounded to the nearest level."""
    position = edges / levels.scale
    level = np.rint(position).clip(levels.first, levels.last)
    # In steps, x = k + u where k is the level; the integral of u^2 from 0 to x is k/12 + u^3/3, beyond the
    # last level, too.
    rest = position - level
    integral = level / 12 + rest * rest * rest / 3
    width = np.diff(position)
    # A bin too narrow for the difference of two integrals is a point.
    mean = np.divide(np.diff(integral), width, out=np.square(rest[1:]), where=width > 1e-6)
    return float(counts @ mean / counts.sum() * levels.scale**2)


def entropy_threshold(edges: np.ndarray, counts: np.ndarray, levels_of: LevelsOf) -> float:
    """T whose quantized distribution tells most about the original one, within MOST_ERROR.

    The measure is the Kullback-Leibler divergence of magnitudes. 0 if all but FARTHEST values are zero.
    """
    magnitudes, shares = _magnitudes(edges, counts)
    largest = float(magnitudes[-1])
    if largest == 0:
        return 0.0
    even = np.diff(
        np.interp(np.linspace(0.0, largest, BINS + 1), magnitudes, np.append(0.0, np.cumsum(shares)))
    )
    # Zero is a level at every threshold, so the many zeros behind a ReLU say nothing about which is best.
    # Left in, their mass would be smeared over the bins that share their level, an error that falls with T
    # and soon outweighs what is clipped. The first bin therefore counts as its neighbour does, as in
    # NVIDIA's pytorch-quantization.
    even[0] = even[1]
    tried = np.arange(int(SMALLEST_SHARE * BINS), BINS + 1, 16)
    errors = _squared_errors(edges, counts, largest, largest * tried / BINS, levels_of)
    most = MOST_ERROR * min(errors)
    losses = []
    for bins, error in zip(tried.tolist(), errors, strict=True):
        levels = levels_of(*_range(edges, largest * bins / BINS))
        steps = max(-levels.first, levels.last)
        losses.append(_information_lost(even, bins, steps + 1) if error <= most and steps < bins else np.inf)
    best = min(range(len(tried)), key=lambda place: (losses[place], errors[place]))
    return float(largest * tried[best] / BINS)


def _range(edges: np.ndarray, threshold: float) -> tuple[float, float]:
    return float(np.clip(edges[0], -threshold, 0.0)), float(np.clip(edges[-1], 0.0, threshold))


def _squared_errors(
    edges: np.ndarray, counts: np.ndarray, largest: float, tried: np.ndarray, levels_of: LevelsOf
) -> list[float]:
    """The error of each threshold, but for an amount that is common to all; nothing counts as larger than
    `largest`.
    """
    edges = edges.clip(-largest, largest)
    # Magnitudes that are level 0 at every threshold add the same error to each: they become one bin of
    # which none is counted.
    tiny = SMALLEST_SHARE * largest / (2 * affine.UNSIGNED_LEVELS)
    first, end = int(np.searchsorted(edges, -tiny)), int(np.searchsorted(edges, tiny, "right")) - 1
    if first < end:
        edges = np.concatenate([edges[: first + 1], edges[end:]])
        counts = np.concatenate([counts[:first], [0], counts[end:]])
    return [
        squared_error(edges, counts, levels_of(*_range(edges, threshold))) for threshold in tried.tolist()
    ]


def _information_lost(counts: np.ndarray, bins: int, levels: int) -> float:
    """KL divergence of the first `bins` bins, what is clipped added to the last, from these bins in
    `levels` levels. Both normalized.
    """
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
    """The histogram of |x|, from 0 on, the FARTHEST values drawn in. Edges [0, 0] and a count of 0 if all
    others are zero.

    The first bin is taken for zero.
    """
    cumulated = np.append(0.0, np.cumsum(counts))
    folded = np.unique(np.append(0.0, np.abs(edges)))
    inside = np.interp(folded, edges, cumulated) - np.interp(-folded, edges, cumulated)
    inside[0], inside[-1] = 0.0, cumulated[-1]
    # the bin before this edge is the last that counts
    last = int(np.searchsorted(inside, (1 - FARTHEST) * cumulated[-1]))
    if last <= 1:
        return np.zeros(2), np.zeros(1)
    drawn_in = np.diff(inside[: last + 1])
    drawn_in[-1] += cumulated[-1] - inside[last]
    return folded[: last + 1], drawn_in
