"""A metric that is known sample by sample, so that it can be found again for samples drawn with replacement."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Value = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Sums:
    """A metric of sums over samples: `rows` float64 [samples, sums], `value` of totals [..., sums]."""

    rows: np.ndarray
    value: Value
    share: bool = False
    """The first column says of each sample whether it is right, and the metric is their share."""
    resamples: int = 1000
    reach: float | None = None
    """By how much one sample may change, its own value being all of the metric, where no two were seen to differ; None if
    that is not known.
    """
    costly: bool = False

    @property
    def samples(self) -> int:
        return len(self.rows)

    @property
    def hits(self) -> np.ndarray | None:
        return self.rows[:, 0] > 0 if self.share else None

    def at(self, counts: np.ndarray) -> np.ndarray:
        """Values [draws] with each sample counted so often, counts [draws, samples]."""
        return self.value(counts @ self.rows)

    def repeated(self, rows: np.ndarray, times: int) -> np.ndarray:
        """Values with each of these samples so often more, beside all once, [rows]."""
        return self.value(self.rows.sum(0) + times * self.rows[rows])

    def whole(self) -> float:
        """Of every sample once; NaN where there is nothing to divide by."""
        return float(self.value(self.rows.sum(0)))


@dataclass(frozen=True)
class Redrawn:
    """A metric that is computed anew for each choice of samples: `of` gets how often each counts, int [samples]."""

    samples: int
    of: Callable[[np.ndarray], float]
    value: float
    resamples: int = 200
    reach: float | None = None
    """As of Sums."""
    costly: bool = False
    """Whether it is computed anew only for those who ask for confidence."""

    @property
    def hits(self) -> np.ndarray | None:
        return None

    def at(self, counts: np.ndarray) -> np.ndarray:
        return np.array([self.of(row) for row in counts])

    def repeated(self, rows: np.ndarray, times: int) -> np.ndarray:
        """As of Sums."""
        once = np.ones(self.samples, np.int64)
        return np.array([self.of(once + times * (np.arange(self.samples) == row)) for row in rows])

    def whole(self) -> float:
        return self.value


Measured = Sums | Redrawn


def right(hits: np.ndarray) -> Sums:
    """The share of samples that are right, bool [samples]."""
    return Sums(
        hits.reshape(-1, 1).astype(np.float64), lambda totals: totals[..., 0] / len(hits), share=True, reach=1
    )


def quotient(above: np.ndarray, below: np.ndarray, reach: float | None = None) -> Sums:
    """The sum of one number per sample over that of another."""
    return Sums(np.stack([above, below], axis=1).astype(np.float64), divided, reach=reach)


def mean(values: np.ndarray, reach: float | None = None) -> Sums:
    """Of one number per sample."""
    return quotient(values, np.ones(len(values)), reach)


def median(values: np.ndarray) -> Redrawn:
    """Of one number per sample, such as milliseconds; what a few of them are, or others would be, hardly moves it."""

    def drawn(counts: np.ndarray) -> float:
        return float(np.median(np.repeat(values, counts)))

    return Redrawn(len(values), drawn, float(np.median(values)), resamples=1000, reach=0.0)


def divided(totals: np.ndarray) -> np.ndarray:
    """The first total over the second."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return totals[..., 0] / totals[..., 1]
