"""Weight scales by search: the one whose rounding loses least, rather than the one that the largest weight
asks for.

A narrower scale clips the largest weights and rounds all others finer; the squared error has its least
value in between.
Source: Banner et al., "Post Training 4-bit Quantization of Convolutional Networks for Rapid-Deployment",
NeurIPS 2019, section 3 (the trade of clipping against rounding), searched instead of derived.
"""

import numpy as np

from onnx_lathe.passes.numerics.quantization import affine

SHARES = (1.0, 0.97, 0.94, 0.91, 0.88, 0.84, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Of the largest magnitude, what becomes level 127."""


def least_error_scale(weight: np.ndarray, axis: int, largest_level: int = affine.LEVELS) -> np.ndarray:
    """Scale per channel, float32 [weight.shape[axis]], of the least squared error: of all SHARES, and the
    best fitted to its levels, which end at `largest_level`.

    For levels q the best scale is <w, q> / <q, q>.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float32)
    largest = affine.channel_scale(rows, 0, largest_level)
    best, least = largest, _error(rows, largest, largest_level)
    for share in SHARES[1:]:
        best, least = _better(
            rows,
            best,
            least,
            np.maximum(largest * np.float32(share), affine.SMALLEST_SCALE),
            largest_level,
        )
    levels = affine.quantize(rows, best, 0, largest_level).astype(np.float32)
    energy = np.square(levels).sum(axis=1)
    fitted = np.where(energy > 0, (rows * levels).sum(axis=1) / np.maximum(energy, 1), best)
    refitted = np.maximum(fitted.astype(np.float32), affine.SMALLEST_SCALE)
    return _better(rows, best, least, refitted, largest_level)[0]


def _better(
    rows: np.ndarray, best: np.ndarray, least: np.ndarray, scale: np.ndarray, largest_level: int
) -> tuple[np.ndarray, np.ndarray]:
    """Per channel, the scale with the smaller error, and that error."""
    error = _error(rows, scale, largest_level)
    return np.where(error < least, scale, best), np.minimum(error, least)


def _error(rows: np.ndarray, scale: np.ndarray, largest_level: int) -> np.ndarray:
    """Squared error of each row, [rows]."""
    restored = affine.dequantize(affine.quantize(rows, scale, 0, largest_level), scale, 0)
    return np.square(rows - restored).sum(axis=1, dtype=np.float64)


def crushed_channels(weight: np.ndarray, restored: np.ndarray, axis: int) -> int:
    """How many channels have most of their weights, though not zero, rounded to zero: what an outlier does
    to the others.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    present = np.count_nonzero(weight, axis=others)
    return int(np.count_nonzero(2 * np.count_nonzero((weight != 0) & (restored == 0), axis=others) > present))
