"""How the range of an activation follows from its statistics on calibration data.

| method | range |
|---|---|
| minmax | every value |
| percentile | the central share of the values |
| entropy | magnitudes up to the threshold at which INT8 levels tell most about the distribution, at little more squared error than mse |
| mse | magnitudes up to the threshold at which INT8 rounding and clipping have the least expected squared error |

The levels are those of the targets: 127 per sign and zero-point 0, the canonical form; or 255 over the
range (`Placement.unsigned`), which behind a ReLU are half as far apart, so that less is to be clipped. All
ranges come from one histogram.
"""

from onnx_lathe.passes.core.services import TensorStatistics
from onnx_lathe.passes.numerics.quantization import clipping

METHODS = ("minmax", "percentile", "entropy", "mse")
_THRESHOLDS = {"entropy": clipping.entropy_threshold, "mse": clipping.squared_error_threshold}


def choose_range(
    statistics: TensorStatistics, method: str, percent: float, unsigned: bool = False
) -> tuple[float, float]:
    """(low, high), in the tensor's own unit; holds 0, which every quantizer has as a level, and nothing
    beyond minimum and maximum else.

    `percent`: share of the values inside, with method=percentile. A range that would hold nothing but 0
    becomes that of minmax. `unsigned`: as Placement has it.
    """
    lowest, highest = min(statistics.minimum, 0.0), max(statistics.maximum, 0.0)
    low, high = lowest, highest
    if method == "percentile":
        low, high = statistics.percentile(percent)
    elif method in _THRESHOLDS:
        levels_of = clipping.unsigned_levels if unsigned else clipping.symmetric_levels
        threshold = _THRESHOLDS[method](*statistics.distribution(), levels_of)
        low, high = max(lowest, -threshold), min(highest, threshold)
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if low < high else (lowest, highest)
