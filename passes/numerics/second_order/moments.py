"""Second moments of what layers read, streamed: how much a change of a weight changes the layer's responses.

    E |(W' - W) x - mean|^2  =  tr(D C D'),   D = W' - W,   C = E[(x - mean x)(x - mean x)']

The mean of the change is left out where a bias makes up for it; where none does, C is E[x x'] instead. C is half the
Hessian of the squared error of the responses in each row of the weight.
Source: Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NIPS 1992, section 2;
layer by layer: Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, section 3.
"""

from dataclasses import dataclass, field

import numpy as np

CHUNK_ROWS = 1 << 13
"""Rows that are in memory as float64 at a time."""
HELD_OUT = 4
"""One sample of so many is kept apart, to judge by."""
DAMPING = 0.01
"""Added to the diagonal, as a share of its mean: inputs that are never active would make it singular."""

LEAST = 1e-6
"""Of the most active group's mean: a group that is never active has something to divide by."""


@dataclass
class Moments:
    """Of vectors of d inputs for each of `groups` groups: their number, mean [groups, d] and centered second moments
    [groups, d, d], float64.
    """

    groups: int
    size: int
    count: int = 0
    mean: np.ndarray = field(init=False)
    centered: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.mean = np.zeros((self.groups, self.size))
        self.centered = np.zeros((self.groups, self.size, self.size))

    def add(self, rows: np.ndarray) -> None:
        """`rows`: [groups, n, d], merged as by Chan, Golub and LeVeque (1979)."""
        for start in range(0, rows.shape[1], CHUNK_ROWS):
            with np.errstate(invalid="ignore", over="ignore"):  # `is_finite` tells
                self._merge(rows[:, start : start + CHUNK_ROWS].astype(np.float64))

    def _merge(self, part: np.ndarray) -> None:
        count = part.shape[1]
        mean = part.mean(axis=1)
        part -= mean[:, None]
        total, step = self.count + count, mean - self.mean
        self.centered += np.matmul(part.transpose(0, 2, 1), part)
        self.centered += self.count * count / total * step[:, :, None] * step[:, None]
        self.mean += step * (count / total)
        self.count = total

    def is_finite(self) -> bool:
        return bool(np.isfinite(self.centered).all())

    def is_active(self) -> bool:
        """Whether any input ever differs from 0."""
        return bool(self.count and (self.mean.any() or self.centered.any()))

    def covariance(self, centered: bool) -> np.ndarray:
        """E[(x - mean)(x - mean)'], or E[x x'], as [groups, d, d]."""
        found: np.ndarray = self.centered / max(self.count, 1)
        return found if centered else found + self.mean[:, :, None] * self.mean[:, None]

    def regular(self, centered: bool) -> np.ndarray:
        """As `covariance`, shrunk towards its diagonal by what so few rows leave open, and damped; [groups, d, d].

        The share is d / (d + rows), near the optimum for inputs that hardly depend on each other (Ledoit and Wolf, "A
        well-conditioned estimator for large-dimensional covariance matrices", 2004).
        """
        found = self.covariance(centered)
        diagonal = np.einsum("gii->gi", found)
        own, mean = diagonal.copy(), diagonal.mean(axis=1, keepdims=True)
        least = max(LEAST * float(mean.max()), float(np.finfo(np.float32).tiny))
        found *= self.count / (self.size + self.count)
        np.einsum("gii->gi", found)[:] = own + np.maximum(DAMPING * mean, least)
        return found


@dataclass
class SplitMoments:
    """Moments to fit by, and of samples that are kept apart to judge by."""

    fitted: Moments
    held: Moments
    seen: int = 0

    @classmethod
    def of(cls, groups: int, size: int) -> "SplitMoments":
        return cls(Moments(groups, size), Moments(groups, size))

    def add(self, rows: np.ndarray) -> None:
        """Rows [groups, n, d] of one sample, or of several that belong together."""
        self.seen += 1
        (self.fitted if self.seen % HELD_OUT else self.held).add(rows)

    @property
    def judging(self) -> Moments:
        """The held-out ones; of so few samples that there are none, those that were fitted by."""
        return self.held if self.held.count else self.fitted

    @property
    def mean(self) -> np.ndarray:
        """Of all samples, [groups, d]."""
        parts = (self.fitted, self.held)
        total = max(sum(one.count for one in parts), 1)
        return np.sum([one.mean * (one.count / total) for one in parts], axis=0)


def response_energy(change: np.ndarray, covariance: np.ndarray) -> float:
    """tr(D C D') of D [groups, r, d] and C [groups, d, d]."""
    return float(np.einsum("grd,grd->", np.matmul(change, covariance), change))
