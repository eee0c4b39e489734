"""Rounding to IEEE 754 binary16: 11 significant bits from 2^-14 (6.1e-5) to 65504, fewer down to 2^-24
(6.0e-8), then zero.
"""

from dataclasses import dataclass

import numpy as np

LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14


@dataclass(frozen=True)
class Rounding:
    """What float16 does to an array. Infinity and NaN stay what they are and count for nothing.

    `overflows` become infinite, `zeros` become zero, `subnormals` keep fewer bits; `error` is the root of
    the error's energy over the values' energy; `worst` is the largest error of an element relative to it.
    """

    overflows: int
    zeros: int
    subnormals: int
    error: float
    worst: float


def to_half(values: np.ndarray) -> np.ndarray:
    """The nearest float16 values, ties to even; infinite beyond the range."""
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float16)


def rounding(values: np.ndarray) -> Rounding:
    """What becomes of float32 `values`, of any shape."""
    flat = values.reshape(-1)
    rounded = to_half(flat)
    finite = np.isfinite(flat)
    overflows = int(np.count_nonzero(finite & np.isinf(rounded)))
    here = finite & np.isfinite(rounded) & (flat != 0)
    size = np.abs(flat[here])
    kept = rounded[here]
    missed = np.abs(size - np.abs(kept).astype(np.float32)).astype(np.float64)
    energy = np.square(size, dtype=np.float64).sum()
    return Rounding(
        overflows=overflows,
        zeros=int(np.count_nonzero(kept == 0)),
        subnormals=int(np.count_nonzero((size < SMALLEST_NORMAL) & (kept != 0))),
        error=float(np.sqrt(np.square(missed).sum() / energy)) if energy else 0.0,
        worst=float((missed / size).max(initial=0.0)),
    )


def largest_magnitude(values: np.ndarray) -> float:
    """The largest magnitude of the finite elements; 0 without any."""
    return float(np.abs(values).max(initial=0, where=np.isfinite(values)))
