"""Figures of a comparison: signal to noise, agreement, and quantiles of times."""

import math
from collections.abc import Sequence

import numpy as np

ZERO = 1e-5
"""What an output of zeros alone counts as, value by value: rounding near it is no error without bound."""


def sqnr_db(expected: np.ndarray, found: np.ndarray) -> float:
    """Energy of `expected` over that of the difference, in dB: inf if they are equal, -inf where one is not finite and
    the other is. Zeros alone count as ZERO each.
    """
    with np.errstate(invalid="ignore"):
        wanted, difference = (
            expected.astype(np.float64),
            found.astype(np.float64) - expected.astype(np.float64),
        )
    alike = expected.astype(np.float64) == found.astype(np.float64)
    both_nan = np.isnan(wanted) & np.isnan(found.astype(np.float64))
    difference = np.where(alike | both_nan, 0.0, difference)
    if not np.all(np.isfinite(difference)):
        return -math.inf
    noise = float(np.sum(np.square(difference)))
    signal = float(np.sum(np.square(np.where(np.isfinite(wanted), wanted, 0.0))))
    if noise == 0.0:
        return math.inf
    return 10 * math.log10((signal or ZERO**2 * difference.size) / noise)


def top1(expected: np.ndarray, found: np.ndarray) -> float | None:
    """Share of rows whose largest value stands at the same place; None for what is no [rows, classes]. A row with a NaN
    has no largest value, on either side: it agrees with none.
    """
    if expected.ndim != 2 or expected.shape[1] < 2 or not np.issubdtype(expected.dtype, np.floating):
        return None
    same = np.argmax(expected, axis=1) == np.argmax(found, axis=1)  # argmax would take the first NaN
    return float(np.mean(same & ~_with_nan(expected, found)))


def unanswered(expected: np.ndarray, found: np.ndarray) -> int:
    """Rows of [rows, classes] with a NaN, on either side."""
    return int(np.sum(_with_nan(expected, found)))


def _with_nan(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    return np.isnan(expected).any(axis=1) | np.isnan(found).any(axis=1)


def differing(expected: np.ndarray, found: np.ndarray) -> float:
    """Share of integers or bools that are others."""
    return float(np.mean(expected != found)) if expected.size else 0.0


def quantile(times: Sequence[float], share: float) -> float:
    """The least time that at least this share of the times does not exceed."""
    ordered = sorted(times)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
