"""Where a resized axis takes its values from, as MIL's documentation says its operations do.

They resize each axis by itself, as a matrix does: [values before, values after].
Source: coremltools, docstrings of `resize_bilinear` and `upsample_nearest_neighbor` (mil/ops/defs/iOS15/image_resizing.py).
"""

import numpy as np

MODES = ("UNALIGN_CORNERS", "STRICT_ALIGN_CORNERS", "DEFAULT")
"""`sampling_mode` of resize_bilinear."""


def by_mil(way: str, before: int, after: int) -> np.ndarray:
    """[before, after], of `nearest` by a whole number of times, or of one of MODES."""
    columns = np.arange(after)
    weights = np.zeros((before, after), np.float32)
    if way == "nearest":
        weights[np.minimum(columns * before // after, before - 1), columns] = 1.0
        return weights
    places = np.clip(_places(way, before, after, columns), 0, before - 1)
    start = np.floor(places).astype(np.int64)
    rest = (places - start).astype(np.float32)
    np.add.at(weights, (start, columns), 1 - rest)
    np.add.at(weights, (np.minimum(start + 1, before - 1), columns), rest)
    return weights


def _places(way: str, before: int, after: int, columns: np.ndarray) -> np.ndarray:
    if way == "UNALIGN_CORNERS":
        return (columns + 0.5) * (before / after) - 0.5
    if after == 1:
        return np.zeros(1)
    if way == "STRICT_ALIGN_CORNERS":
        return columns * ((before - 1) / (after - 1))
    return columns * ((before - before / after) / (after - 1))
