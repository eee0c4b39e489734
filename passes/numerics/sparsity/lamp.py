"""Layer-adaptive magnitude: which weights of several layers distort the network least when they become zero.

    score(w) = w^2 / sum of v^2 over the weights v of the same layer with |v| >= |w|

The largest weight of a layer scores 1 and is the last to go, so no layer is emptied, and a layer of small
weights does not give most merely because they are small. Inside a layer, scores are ordered as magnitudes
are; so what is found is a magnitude per layer.
Source: Lee, Park, Mo, Ahn and Shin, "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021,
section 3.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.numerics.sparsity.magnitude import Threshold, magnitudes

_BINS = 0x7F80  # upper 15 bits of the finite magnitudes
_EDGES = (np.arange(_BINS + 1, dtype=np.int32) << 16).view(np.float32).astype(np.float64)
"""The smallest magnitude of every bin, and infinity, the end of the last."""

_ROUNDING = 1e-9
"""Bounds are that much wider, relatively: sums taken in another order differ in their last bits."""


@dataclass(frozen=True)
class _Layer:
    """One array as a histogram of magnitudes. Scores rise with the bins, so that `lower` and `upper` are
    sorted.
    """

    counts: np.ndarray
    above: np.ndarray
    """Sum of squares of all bins above each."""
    lower: np.ndarray
    upper: np.ndarray
    """Bounds of the scores in a bin."""


def smallest_scores(arrays: Iterable[np.ndarray], count: int) -> list[Threshold]:
    """Thresholds, one per array, that select exactly the `count` values (float32, finite) of lowest score.
    Ties go by position.

    `arrays` is gone through twice. The histograms of the first pass bound every score to a few percent; the
    second one sorts the values whose bounds leave it open on which side of the threshold they are.
    """
    layers = [_histogram(array) for array in arrays]
    if count == 0:
        return [Threshold(0, 0) for _ in layers]
    counts = np.concatenate([layer.counts for layer in layers])
    low = _ranked(np.concatenate([layer.lower for layer in layers]), counts, count)
    high = _ranked(np.concatenate([layer.upper for layer in layers]), counts, count)
    first = [int(np.searchsorted(layer.upper, low)) for layer in layers]  # bins below are selected whole
    # bins from here on are kept whole
    behind = [int(np.searchsorted(layer.lower, high, side="right")) for layer in layers]
    rank = count - sum(int(layer.counts[:start].sum()) for layer, start in zip(layers, first, strict=True))
    opened = [_between(array, start, end) for array, start, end in zip(arrays, first, behind, strict=True)]
    scores = [
        _scores(bits, layer.above[end - 1]) for bits, layer, end in zip(opened, layers, behind, strict=True)
    ]
    owner = np.repeat(np.arange(len(layers)), [bits.size for bits in opened])
    chosen = owner[np.argsort(np.concatenate(scores), kind="stable")[:rank]]
    numbers = np.bincount(chosen, minlength=len(layers))
    return [
        _threshold(bits, int(number), start)
        for bits, number, start in zip(opened, numbers, first, strict=True)
    ]


def _histogram(array: np.ndarray) -> _Layer:
    counts, squares = np.zeros(_BINS, np.int64), np.zeros(_BINS)
    for magnitude in magnitudes(array):
        bins = magnitude >> 16
        counts += np.bincount(bins, minlength=_BINS)
        squares += np.bincount(bins, magnitude.view(np.float32).astype(np.float64) ** 2, minlength=_BINS)
    from_here = np.cumsum(squares[::-1])[::-1]
    above = np.append(from_here[1:], 0.0)
    low, high = _EDGES[:-1] ** 2, _EDGES[1:] ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        lower = np.nan_to_num(np.minimum(low / from_here, 1.0), nan=0.0)
        upper = np.nan_to_num(high / (above + high), nan=1.0)
    return _Layer(counts, above, lower * (1 - _ROUNDING), upper * (1 + _ROUNDING))


def _ranked(bounds: np.ndarray, counts: np.ndarray, rank: int) -> float:
    """The rank-th smallest (from 1), when every bound stands for `counts` values."""
    order = np.argsort(bounds, kind="stable")
    return float(bounds[order[np.searchsorted(np.cumsum(counts[order]), rank)]])


def _between(array: np.ndarray, start: int, end: int) -> np.ndarray:
    """Bits of the magnitudes in the bins start to end - 1, sorted."""
    found = [bits[(bits >= start << 16) & (bits < end << 16)] for bits in magnitudes(array)]
    return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int32)


def _scores(bits: np.ndarray, above: float) -> np.ndarray:
    """Of sorted magnitudes, above which squares add up to `above` in the same layer; equal magnitudes score
    alike.
    """
    squares = bits.view(np.float32).astype(np.float64) ** 2
    from_here = above + np.cumsum(squares[::-1])[::-1]
    at_least_as_large = from_here[np.searchsorted(bits, bits)]
    return np.divide(squares, at_least_as_large, out=np.zeros_like(squares), where=squares > 0)


def _threshold(bits: np.ndarray, number: int, start: int) -> Threshold:
    """Selects the first `number` of these sorted magnitudes, and every one in a bin before `start`."""
    if number == 0:
        return Threshold(start << 16, 0)
    last = int(bits[number - 1])
    return Threshold(last, number - int(np.searchsorted(bits, last)))
