"""How far values are from those of another model: sums over calls, with no array kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

BINS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Edges of the histogram of errors, relative to the root mean square of the original's values of a call."""
SMALL = 1e-2
"""Relative errors are of values from this share of the root mean square on: beside 0 any error is endless."""
SAMPLED = 1 << 16
_VANISHING = 1e-20
_FAINT = 1e-12
"""Energy per value, 1e-6 squared: noise beside values that are all zero is counted against it."""


@dataclass
class Difference:
    """Of one tensor, over all calls so far.

    `differing`: values that are not equal, the only figure of integers, bools and texts. `not_finite`: values that
    are NaN or infinite in one model and not in the other. `shapes`: (original's, other's) of the first call where
    they differ; such calls are not in the sums.
    """

    numeric: bool = True
    calls: int = 0
    values: int = 0
    differing: int = 0
    not_finite: int = 0
    signal: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0
    max_relative: float = 0.0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(len(BINS) + 1, np.int64))
    """int64 [8]: values whose error is below BINS[0], from it to BINS[1], ..., from BINS[-1] on; of a call about SAMPLED,
    evenly spread.
    """
    shapes: tuple[Sequence[int], Sequence[int]] | None = None
    shape: Sequence[int] = ()
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.float32))
    """Both are the other's, of the last call."""
    noise_of: np.ndarray | None = None
    """Noise per channel, float64 [channels]; None without a second axis."""

    def add(self, original: np.ndarray, other: np.ndarray) -> float:
        """One call's values. Returns the signal to noise ratio of this call alone as `sqnr` does."""
        self.calls += 1
        self.shape, self.dtype = other.shape, other.dtype
        if original.shape != other.shape:
            self.shapes = self.shapes or (original.shape, other.shape)
            return -math.inf
        self.values += original.size
        self.numeric = _is_float(original) and _is_float(other)
        if original.size == 0:
            return math.inf
        if not self.numeric:
            differing = int(np.sum(original != other))
            self.differing += differing
            return math.inf if differing == 0 else 10 * math.log10(original.size / differing)
        # float64 takes twice the time, and is needed where squares of float32 overflow or vanish alone
        single = original.dtype == other.dtype == np.float32
        narrow = single and _VANISHING < _energy(original) + _energy(other) < math.inf
        kind = np.float32 if narrow else np.float64
        original, other = (np.atleast_1d(array.astype(kind, copy=False)) for array in (original, other))
        return self._add_floats(original, other)

    def _add_floats(self, original: np.ndarray, other: np.ndarray) -> float:
        with np.errstate(invalid="ignore"):
            error, broken = other - original, 0
        if not np.isfinite(error).all():
            compared = np.isfinite(original) & np.isfinite(other)
            same = (original == other) | (np.isnan(original) & np.isnan(other))
            broken = int(np.sum(~compared & ~same))
            original, error = np.where(compared, original, 0), np.where(compared, error, 0)
        signal = _energy(original)
        self.signal += signal
        self.not_finite += broken
        if not error.any():
            self.differing += broken
            self.histogram[0] += min(error.size, SAMPLED)
            return -math.inf if broken else math.inf
        self.differing += broken + int(np.count_nonzero(error))
        noise = _energy(error) or _energy(error.astype(np.float64))
        self.noise += noise
        self._add_channels(error)
        self._add_extremes(original, np.abs(error), math.sqrt(max(signal / error.size, _FAINT)))
        return -math.inf if broken else decibels(signal, noise, error.size)

    def _add_extremes(self, original: np.ndarray, error: np.ndarray, mean: float) -> None:
        self.max_abs = max(self.max_abs, float(error.max()))
        size = np.abs(original)
        size[size < SMALL * mean] = np.inf
        self.max_relative = max(self.max_relative, float(np.divide(error, size, out=size).max()))
        sample = error.reshape(-1)[:: -(-error.size // SAMPLED) | 1]  # an odd step: channels are mostly even
        bins = np.searchsorted(np.array(BINS) * mean, sample, "right")
        self.histogram += np.bincount(bins, minlength=len(BINS) + 1)

    def _add_channels(self, error: np.ndarray) -> None:
        if error.ndim < 2:
            return
        parts = error.reshape(*error.shape[:2], -1)
        noise = np.einsum("ncx,ncx->c", parts, parts)
        if self.noise_of is None:
            self.noise_of = noise
        elif self.noise_of.shape == noise.shape:
            self.noise_of = self.noise_of + noise

    @property
    def worst_channel(self) -> tuple[int, float] | None:
        """(the channel of axis 1 with the most noise, its share of all noise); None if there are no channels."""
        if self.noise_of is None or self.noise_of.size < 2 or not self.noise_of.sum() > 0:
            return None
        worst = int(self.noise_of.argmax())
        return worst, float(self.noise_of[worst] / self.noise_of.sum())

    @property
    def verdict(self) -> str:
        """ "shape", "not finite", "equal" or "differs"."""
        if self.shapes is not None:
            return "shape"
        if self.not_finite:
            return "not finite"
        return "differs" if self.differing else "equal"

    @property
    def sqnr(self) -> float | None:
        """Signal to noise in dB; infinite if nothing differs, None where there is none: of integers, of other
        shapes, or if no value could be compared.
        """
        compared = self.numeric and self.shapes is None and self.values > 0
        return decibels(self.signal, self.noise, self.values) if compared else None

    @property
    def closeness(self) -> float:
        """One figure for every kind of tensor, in dB, to order them by: `sqnr`; minus infinity for values that are
        not finite or of another shape; of integers the share that differs.
        """
        if self.not_finite or self.shapes is not None:
            return -math.inf
        if not self.numeric:
            return math.inf if not self.differing else 10 * math.log10(self.values / self.differing)
        found = self.sqnr
        return math.inf if found is None else found


def decibels(signal: float, noise: float, values: int) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(max(signal, _FAINT * values) / noise)


def _energy(values: np.ndarray) -> float:
    flat = values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(flat @ flat)


def _is_float(array: np.ndarray) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating))
