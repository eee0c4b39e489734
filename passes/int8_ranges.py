"""How the range of an activation follows from its statistics on calibration data.

| method | range |
|---|---|
| minmax | every value |
| percentile | the central share of the values |
| entropy | magnitudes up to the threshold at which INT8 levels tell most about the distribution |
| mse | magnitudes up to the threshold at which INT8 rounding and clipping have the least expected squared error |

The thresholds are those of the canonical form: 127 levels per sign, zero-point 0. All come from one histogram.
"""

from passes.base import TensorStatistics
from passes.numerics import affine, calibration

METHODS = ("minmax", "percentile", "entropy", "mse")
_THRESHOLDS = {"entropy": calibration.entropy_threshold, "mse": calibration.squared_error_threshold}


def choose_range(statistics: TensorStatistics, method: str, percent: float) -> tuple[float, float]:
    """(low, high), in the tensor's own unit; holds 0, which every quantizer has as a level, and nothing beyond minimum and maximum else.

    `percent`: share of the values inside, with method=percentile. A range that would hold nothing but 0 becomes that of minmax.
    """
    lowest, highest = min(statistics.minimum, 0.0), max(statistics.maximum, 0.0)
    low, high = lowest, highest
    if method == "percentile":
        low, high = statistics.percentile(percent)
    elif method in _THRESHOLDS:
        threshold = _THRESHOLDS[method](*statistics.distribution(), affine.LEVELS)
        low, high = max(lowest, -threshold), min(highest, threshold)
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if low < high else (lowest, highest)
