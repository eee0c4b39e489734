"""Second moments of what layers read, streamed: how much a change of a weight changes the layer's responses.

    E |(W' - W) x - mean|^2  =  tr(D C D'),   D = W' - W,   C = E[(x - mean x)(x - mean x)']

The mean of the change is left out where a bias makes up for it; where none does, C is E[x x'] instead. C is half the
Hessian of the squared error of the responses in each row of the weight.
Source: Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NIPS 1992, section 2;
layer by layer: Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, section 3.
"""

from dataclasses import dataclass

import numpy as np

CHUNK_ROWS = 1 << 13
"""Rows that are in memory as float64 at a time."""
MOST_WAITING = 1 << 10
"""Rows that wait to be added, at most; few of small moments, beside which they would be large."""
HELD_OUT = 4
"""One sample of so many is kept apart, to judge by."""
DAMPING = 0.01
"""Added to the diagonal, as a share of its mean: inputs that are never active would make it singular. Of fewer rows than
100 it is one row's share: inputs that hardly differed in them may differ in others.
"""
SAME = 1e-12
"""Of the mean's square: what rounding makes of inputs that are always the same."""
LEAST = 1e-6
"""Of the most active group's mean: a group that is never active has something to divide by."""


class Moments:
    """Of vectors of d inputs for each of `groups` groups: their number, mean [groups, d] and centered second moments
    [groups, d, d], float64.

    Rows wait until they are many: to add a few to moments of thousands of inputs takes as long as to add all.
    """

    def __init__(self, groups: int, size: int) -> None:
        self.groups, self.size = groups, size
        self._count = 0
        self._mean = np.zeros((groups, size))
        self._centered = np.zeros((groups, size, size))
        self._waiting: list[np.ndarray] = []
        self._most = min(2 * size, MOST_WAITING)

    @property
    def count(self) -> int:
        return self._count + self._rows_waiting

    @property
    def mean(self) -> np.ndarray:
        self._merge_all()
        return self._mean

    @property
    def centered(self) -> np.ndarray:
        self._merge_all()
        return self._centered

    @property
    def _rows_waiting(self) -> int:
        return sum(part.shape[1] for part in self._waiting)

    def add(self, rows: np.ndarray) -> None:
        """`rows`: [groups, n, d], merged as by Chan, Golub and LeVeque (1979)."""
        self._waiting.append(rows)
        if self._rows_waiting >= self._most:
            self._merge_all()

    def _merge_all(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate(self._waiting, axis=1)
        self._waiting.clear()
        for start in range(0, rows.shape[1], CHUNK_ROWS):
            with np.errstate(invalid="ignore", over="ignore"):  # `is_finite` tells
                self._merge(rows[:, start : start + CHUNK_ROWS].astype(np.float64))

    def _merge(self, part: np.ndarray) -> None:
        count = part.shape[1]
        mean = part.mean(axis=1)
        part -= mean[:, None]
        total, step = self._count + count, mean - self._mean
        self._centered += np.matmul(part.transpose(0, 2, 1), part)
        self._centered += (self._count * count / total * step)[:, :, None] * step[:, None]
        self._mean += step * (count / total)
        self._count = total

    def is_finite(self) -> bool:
        return bool(np.isfinite(self.centered).all())

    def is_active(self) -> bool:
        """Whether any input ever differs from 0."""
        return bool(self.count and (self.mean.any() or self.centered.any()))

    def varies(self) -> bool:
        """Whether any input differs from its mean, by more than rounding."""
        spread = np.einsum("gii->", self.centered) / max(self.count, 1)
        return bool(spread > SAME * float(np.square(self.mean).sum()))

    def covariance(self, centered: bool) -> np.ndarray:
        """E[(x - mean)(x - mean)'], or E[x x'], as [groups, d, d]."""
        found: np.ndarray = self.centered / max(self.count, 1)
        return found if centered else found + self.mean[:, :, None] * self.mean[:, None]

    def about(self, center: np.ndarray) -> np.ndarray:
        """E[(x - center)(x - center)'], center [groups, d]."""
        step = self.mean - center
        found: np.ndarray = self.centered / max(self.count, 1)
        found += step[:, :, None] * step[:, None]
        return found

    def regular(self, centered: bool) -> np.ndarray:
        """As `covariance`, shrunk towards its diagonal by what so few rows leave open, and damped; [groups, d, d]."""
        return shrunk(self.covariance(centered), self.count)


@dataclass
class SplitMoments:
    """Moments to fit by, and of samples that are kept apart to judge by."""

    fitted: Moments
    held: Moments
    samples: int = 0

    @classmethod
    def of(cls, groups: int, size: int) -> "SplitMoments":
        return cls(Moments(groups, size), Moments(groups, size))

    def add(self, rows: np.ndarray, number: int) -> None:
        """Rows [groups, n, d] of the sample of that number, or of several that belong together."""
        (self.fitted if (number + 1) % HELD_OUT else self.held).add(rows)

    def refusal(self, centered: bool) -> str | None:
        """What the inputs are that nothing can be fitted by."""
        if not self.fitted.is_active():
            return "are 0"
        if not (self.fitted.is_finite() and self.held.is_finite()):
            return "are NaN or infinite"
        return "do not vary" if centered and not self.fitted.varies() else None

    def judging(self, centered: bool) -> np.ndarray:
        """Second moments [groups, d, d] to judge by: of the held-out samples, about the mean that the others have; of so
        few samples that there are none, those that are fitted by.
        """
        if not self.held.count:
            return self.fitted.regular(centered)
        return self.held.about(self.fitted.mean if centered else np.zeros_like(self.fitted.mean))

    def judged(self, weight: np.ndarray, centered: bool) -> tuple[np.ndarray, float]:
        """(moments [groups, d, d] to judge a change of the weight [groups, r, d] by; the energy of its responses by them). Of
        samples kept apart by which it answers 0 no error has a share: those that are fitted by stand in for them.
        """
        weight, judging = weight.astype(np.float64), self.judging(centered)
        energy = response_energy(weight, judging)
        if energy > 0:
            return judging, energy
        judging = self.fitted.regular(centered)
        return judging, response_energy(weight, judging)

    @property
    def mean(self) -> np.ndarray:
        """Of all samples, [groups, d]."""
        parts = (self.fitted, self.held)
        total = max(sum(one.count for one in parts), 1)
        return np.sum([one.mean * (one.count / total) for one in parts], axis=0)


def response_energy(change: np.ndarray, covariance: np.ndarray) -> float:
    """tr(D C D') of D [groups, r, d] and C [groups, d, d]; of float32 it is summed in float64."""
    return float(np.einsum("grd,grd->", np.matmul(change, covariance), change, dtype=np.float64))


def shrunk(covariance: np.ndarray, rows: int) -> np.ndarray:
    """The covariance [groups, d, d] of so many rows, shrunk in place towards its diagonal, and damped.

    The share is d / (d + rows), near the optimum for inputs that hardly depend on each other (Ledoit and Wolf, "A
    well-conditioned estimator for large-dimensional covariance matrices", 2004).
    """
    diagonal = np.einsum("gii->gi", covariance)
    own, mean = diagonal.copy(), diagonal.mean(axis=1, keepdims=True)
    least = max(LEAST * float(mean.max()), float(np.finfo(np.float32).tiny))
    covariance *= rows / (covariance.shape[-1] + rows)
    damping = max(DAMPING, 1 / max(rows, 1))
    np.einsum("gii->gi", covariance)[:] = own + np.maximum(damping * mean, least)
    return covariance
