"""INT8 weights whose products with UINT8 activations can be added in pairs in 16 bits, and never saturate.

x86-64 processors without VNNI multiply unsigned by signed bytes and add each two neighbouring products in
one instruction, whose result has 16 bits (VPMADDUBSW). 255 a + 255 b stays within -32768 to 32767 for every
pair of levels of one sign with |a + b| <= 128; levels of two signs always do. A pair beyond is cut back by
half its excess each, at whichever scale of the channel loses least: some wider scale has no such pair.
Source: ONNX Runtime's documentation, "Quantize ONNX models", "When and why do I need to try U8U8?", whose
remedy of 7 bits is the widest of these scales, for all channels.
"""

import numpy as np

from onnx_lathe.passes.numerics.quantization import affine

LARGEST_SUM = 128
"""Of the magnitudes of two neighbouring levels of one sign."""

STRETCHES = (1.0, 1.04, 1.08, 1.12, 1.16, 1.2, 1.25, 1.3, 1.36, 1.42, 1.5, 1.6, 1.75, 2.0)
"""What a channel's scale is multiplied by, in turn; at 2 no two levels of 127 steps are beyond."""


def saturates(levels: np.ndarray) -> np.ndarray:
    """Whether each row of INT8 levels, [rows, K] in the order in which they are added, has a pair that may
    saturate: [rows].
    """
    first, second = _pairs(levels.astype(np.int16))
    found: np.ndarray = ((first * second > 0) & (np.abs(first + second) > LARGEST_SUM)).any(axis=1)
    return found


def without_saturation(rows: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(INT8 levels [rows, K], scales [rows]) of float32 `rows` [rows, K] near `scale` [rows], of the least
    squared error.

    A row that cannot saturate keeps its scale, and levels rounded to the nearest.
    """
    levels, scales = affine.quantize(rows, scale, 0), scale.astype(np.float32).copy()
    wrong = np.flatnonzero(saturates(levels))
    if wrong.size:
        levels[wrong], scales[wrong] = _stretched(rows[wrong], scales[wrong])
    return levels, scales


def _stretched(rows: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    best, levels = scale.copy(), np.zeros(rows.shape, np.int8)
    least = np.full(len(rows), np.inf)
    for stretch in STRETCHES:
        wider = scale * np.float32(stretch)
        tried = _cut(affine.quantize(rows, wider, 0))
        error = np.square(rows - affine.dequantize(tried, wider, 0)).sum(axis=1, dtype=np.float64)
        better = error < least
        least[better], best[better], levels[better] = error[better], wider[better], tried[better]
    return levels, best


def _cut(levels: np.ndarray) -> np.ndarray:
    """The levels, with pairs that may saturate cut back to LARGEST_SUM; zeros stay zero."""
    first, second = _pairs(levels.astype(np.int16))
    total = first + second
    excess = np.where(first * second > 0, np.sign(total) * np.maximum(np.abs(total) - LARGEST_SUM, 0), 0)
    half = excess // 2
    joined = np.stack([first - half, second - (excess - half)], axis=2).reshape(len(levels), -1)
    return joined[:, : levels.shape[1]].astype(np.int8)


def _pairs(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Even and odd columns; a last one without a neighbour gets a zero."""
    even = np.pad(levels, ((0, 0), (0, levels.shape[1] % 2)))
    return even[:, 0::2], even[:, 1::2]
