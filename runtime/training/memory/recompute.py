"""Which steps of a graph to compute again in the backward pass, so that a training needs no more memory
than it may.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174, 2016; segments of
unequal length as in Jain et al., "Checkmate: Breaking the Memory Wall with Optimal Tensor
Rematerialization", MLSys 2020, section 3, by dynamic programming.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

POSITIONS = 128
"""Cuts that are considered; the best ones, evenly spread, in a longer graph."""


@dataclass
class Activation:
    """Memory of one tensor and its views: the step that makes it, the first that saves it for backward
    (None: none does), those that read it. Steps are numbered as in the plan; the loss comes after the
    last.
    """

    made: int
    size: int
    saved: int | None = None
    reads: list[int] = field(default_factory=list)
    has_gradient: bool = False

    @property
    def end(self) -> int:
        """The last step that reads it."""
        return max(self.reads, default=self.made)


@dataclass(frozen=True)
class Profile:
    """One forward pass. `seconds[i]` is the time of step i, `until[i]` that until it saves its last tensor,
    None if it saves none.
    """

    steps: int
    activations: Sequence[Activation]
    seconds: Sequence[float]
    until: Sequence[float | None]
    weights: Sequence[int]
    """Bytes of the trained weights that each step reads: their gradients are there for a moment."""

    @property
    def saved_bytes(self) -> int:
        """What the backward pass needs if nothing is computed again."""
        return sum(activation.size for activation in self.activations if activation.saved is not None)


def choose(profile: Profile, budget: float) -> tuple[int, ...] | None:
    """The cuts that fit `budget` bytes with the least time for computing again; () if nothing need be, None
    if nothing fits.

    While a segment's gradients are computed, memory holds all that crosses the cuts up to it, and what is
    computed again. The last segment is not computed again. Exact for the cuts considered: of the ways to
    get to a cut, those stay that none beats in both bytes and time.
    """
    costs = Costs(profile)
    best: tuple[float, tuple[int, ...]] | None = None
    ways: dict[int, list[_Way]] = {0: [(0, 0.0, ())]}
    for place, first in enumerate(costs.positions):
        for kept, seconds, cuts in _undominated(ways.pop(first, [])):
            if kept + costs.rest(first) <= budget and (best is None or seconds < best[0]):
                best = seconds, cuts
            for end in costs.positions[place + 1 :]:
                more = kept + costs.crossing(first, end)
                if max(more, kept + costs.peak(first, end)) <= budget:
                    ways.setdefault(end, []).append((more, seconds + costs.again(first, end), (*cuts, end)))
    return None if best is None else best[1]


def smallest(profile: Profile) -> tuple[int, ...]:
    """The cuts with the lowest peak, to one part in a thousand."""
    low, high, cuts = 0, Costs(profile).rest(0), tuple[int, ...]()
    while high - low > max(1, high // 1000):
        middle = (low + high) // 2
        found = choose(profile, middle)
        if found is None:
            low = middle
        else:
            high, cuts = middle, found
    return cuts


_Way = tuple[int, float, tuple[int, ...]]
"""To a cut: bytes kept so far, seconds for computing again, and the cuts."""


def _undominated(ways: list[_Way]) -> Iterator[_Way]:
    fastest = math.inf
    for way in sorted(ways):
        if way[1] < fastest:
            fastest = way[1]
            yield way


class Costs:
    """Bytes and seconds of segments, each looked up by its first step and the step after its last."""

    def __init__(self, profile: Profile) -> None:
        self.profile, size = profile, profile.steps + 2
        saved, crossing = np.zeros((2, size, size), np.int64)
        gradients, given, added = np.zeros((3, size), np.int64)
        for activation in profile.activations:
            if activation.saved is not None:
                saved[activation.saved + 1 :, activation.made] += activation.size
            crossing[activation.made + 1 : activation.end + 1, activation.made] += activation.size
            if activation.has_gradient:
                gradients[activation.made : activation.end + 1] += activation.size
                given[activation.made] += activation.size
                added[sorted(activation.reads)[:-1]] += activation.size
        self._saved, self._crossing = (table[:, ::-1].cumsum(1)[:, ::-1] for table in (saved, crossing))
        # A second gradient of a tensor is there with what it was computed from, then with the first one and
        # their sum.
        gradients += np.maximum(added, 2 * added - given)
        gradients[: profile.steps] += profile.weights
        # While the gradients of a step are computed, what later steps have saved is free again.
        self._peak = np.maximum.accumulate(np.tril(self._saved[1:, :-1] + gradients[:-1, None]), 0)
        self._again = self._saved + self._crossing[:, :1]
        self._seconds = np.concatenate(([0.0], np.cumsum(profile.seconds)))
        self.positions = self._candidates()

    def crossing(self, first: int, end: int) -> int:
        """Bytes that the steps make and later ones read."""
        return int(self._crossing[end, first])

    def peak(self, first: int, end: int) -> int:
        """Bytes that their backward pass needs if they are computed again, and what they read is there."""
        return int(max(self._again[end, first], self._peak[end - 1, first]))

    def rest(self, first: int) -> int:
        """The same for all steps from `first` on, if they are not computed again; the loss is one of them."""
        return int(self._peak[self.profile.steps, first])

    def again(self, first: int, end: int) -> float:
        """Seconds to compute the steps again. It ends where the last tensor is saved, which for a
        convolution is before it computes.
        """
        last = next(
            (step for step in reversed(range(first, end)) if self.profile.until[step] is not None), first
        )
        return float(self._seconds[last] - self._seconds[first]) + (self.profile.until[last] or 0.0)

    def recomputed(self, cuts: Sequence[int]) -> float:
        return sum(self.again(first, end) for first, end in zip((0, *cuts), cuts, strict=False))

    def _candidates(self) -> list[int]:
        """0, and in each of POSITIONS equal parts of the graph the cut that fewest bytes cross."""
        parts = np.array_split(
            np.arange(1, self.profile.steps), min(POSITIONS, max(self.profile.steps - 1, 1))
        )
        return [
            0,
            *(min(map(int, part), key=lambda cut: self._crossing[cut, 0]) for part in parts if part.size),
        ]
