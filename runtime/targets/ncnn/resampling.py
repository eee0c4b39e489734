"""Where ncnn's Interp takes the values of a resized axis from, and whether ONNX Runtime takes them from there too.

Both resize each axis by itself, as a matrix does: [values before, values after]. ONNX Runtime's is asked for
(targets/core/resampling.py); Interp's is written here after src/layer/interp.cpp.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.targets.core.resampling import by_onnxruntime

NEAREST, BILINEAR, BICUBIC = 1, 2, 3
LEAST = {NEAREST: 1, BILINEAR: 2, BICUBIC: 4}
"""Values that an axis must have: with fewer, Interp reads beyond its ends."""
SLOPE = -0.75


class Resampling(NamedTuple):
    """`way`: Interp's resize_type. `aligned`: the corners are the same places."""

    way: int
    aligned: bool


def same_places(
    found: Resampling,
    op: str,
    opset: int,
    attributes: Mapping[str, Any],
    before: int,
    after: int,
    scale: float | None,
) -> bool:
    """Whether Interp computes of an axis of `before` values what ONNX Runtime does."""
    if before < LEAST[found.way] or (found.aligned and after < 2):
        return False
    try:
        wanted = by_onnxruntime(op, opset, tuple(sorted(attributes.items())), before, after, scale)
    except ModelError:  # what needs more than one axis, such as a region of the image
        return False
    ours = _by_interp(found, before, after)
    if wanted.shape != ours.shape:
        return False
    # ONNX Runtime computes places in float32: their rounding grows with the size, and is one of the weights
    tolerance = 1e-6 + 5e-7 * (before + after)
    return bool(np.abs(wanted - ours).max() <= tolerance)


def _by_interp(found: Resampling, before: int, after: int) -> np.ndarray:
    """[before, after]: the weight of each value in each."""
    columns = np.arange(after)
    weights = np.zeros((before, after), np.float32)
    if found.way == NEAREST:
        ratio = np.float32(before) / np.float32(after)
        places = (columns.astype(np.float32) * ratio).astype(np.int64)
        weights[np.minimum(places, before - 1), columns] = 1.0
        return weights
    centres = (columns + 0.5) * (before / after) - 0.5
    if found.aligned:
        centres = columns * ((before - 1) / (after - 1))
    start = np.floor(centres.astype(np.float32)).astype(np.int64)
    rest = centres.astype(np.float32) - start
    for offset, share in _shares(found.way, rest):
        np.add.at(weights, (np.clip(start + offset, 0, before - 1), columns), share)
    return weights


def _shares(way: int, rest: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(offset from the place, weight) of the values around one that lies `rest` behind a place."""
    if way == BILINEAR:
        return [(0, 1 - rest), (1, rest)]
    return [(offset, _cubic(np.abs(rest - offset))) for offset in (-1, 0, 1, 2)]


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' kernel."""
    near = (SLOPE + 2) * distance**3 - (SLOPE + 3) * distance**2 + 1
    far = SLOPE * distance**3 - 5 * SLOPE * distance**2 + 8 * SLOPE * distance - 4 * SLOPE
    return np.where(distance <= 1, near, far)
