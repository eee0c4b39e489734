"""The error of a convolution algorithm in a processor's arithmetic, on what a layer reads, with float64 as truth."""

from collections.abc import Mapping, Sequence

import numpy as np

from onnx_lathe.kernels import DIRECT
from onnx_lathe.passes.numerics.tile_arithmetic import by_tiles, direct
from onnx_lathe.passes.winograd.ways import Way
from onnx_lathe.tiles import NCNN

CHANNELS = 16
"""So many output channels are looked at, spread over all."""
EDGE = 26
"""Side of the piece of an image that is looked at: several tiles of any size."""


def relative_errors(
    image: np.ndarray,
    weight: np.ndarray,
    ways: Sequence[Way],
    stored: type[np.floating] = np.float32,
) -> Mapping[Way, float]:
    """Largest error over largest result: image [C, H, W], padded already, weight [O, C, 3, 3].

    Data and results are rounded to `stored` too, in which layers hand them on. A piece around the largest value is
    looked at. A result beyond the range of the arithmetic makes the error infinite; where
    all results are zero there is none.
    """
    chosen = weight[np.unique(np.linspace(0, len(weight) - 1, CHANNELS).astype(int))]
    peak = np.unravel_index(np.abs(image).max(axis=0).argmax(), image.shape[1:])
    top, left = (
        max(min(int(at) - EDGE // 2, size - EDGE), 0) for at, size in zip(peak, image.shape[1:], strict=True)
    )
    piece = image[:, top : top + EDGE, left : left + EDGE]
    windows = np.lib.stride_tricks.sliding_window_view(piece.astype(np.float64), (3, 3), (1, 2))
    wanted = np.tensordot(windows, chosen.astype(np.float64), ([0, 3, 4], [1, 2, 3])).transpose(2, 0, 1)
    largest = float(np.abs(wanted).max(initial=0.0))
    if largest == 0:
        return {}
    found = {}
    with np.errstate(over="ignore", invalid="ignore"):
        data = piece.astype(stored)
        for way in ways:
            result = _computed(data, chosen, way).astype(stored)
            error = float(np.abs(result.astype(np.float64) - wanted).max()) / largest
            found[way] = error if np.isfinite(error) else np.inf
    return found


def _computed(data: np.ndarray, weight: np.ndarray, way: Way) -> np.ndarray:
    """Weights are stored in the profile's arithmetic, whatever the type of the sums."""
    kind = way.profile.arithmetic
    if way.m == DIRECT:
        sums = way.sums or kind
        return direct(data.astype(sums), weight.astype(kind).astype(sums), way.lanes)
    return by_tiles(data.astype(kind), weight, NCNN[way.m])
