"""What intervals are found of, and what they are."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Sampled(Protocol):
    """A metric of one model, sample by sample; see runtime/running/tasks/samples.py."""

    @property
    def samples(self) -> int: ...

    @property
    def resamples(self) -> int:
        """How often it is worth to draw them again."""

    @property
    def hits(self) -> np.ndarray | None:
        """Bool [samples] where the metric is the share of samples that are right."""

    @property
    def reach(self) -> float | None:
        """By how much a sample may differ from others, all of which are alike; None if that is not known."""

    @property
    def costly(self) -> bool:
        """Whether it is not to be computed again without being asked."""

    def at(self, counts: np.ndarray) -> np.ndarray:
        """Values [draws] with each sample counted so often, counts int [draws, samples]."""

    def repeated(self, rows: np.ndarray, times: int) -> np.ndarray:
        """Values with each of these samples so often more, beside all once, [rows]."""


@dataclass(frozen=True)
class Interval:
    """`low` to `high` hold the true value in `confidence` of all cases; `samples` that it was found on. `widened`: by how
    much at each end, for what so few samples do not show.
    """

    low: float
    high: float
    confidence: float
    method: str
    samples: int
    widened: float = 0.0


class NoIntervalError(Exception):
    """Says why there is none."""
