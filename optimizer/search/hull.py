"""The settings of one layer that some price of harm chooses, and others near them that may be better."""

import itertools
from collections.abc import Collection, Sequence


def lower_hull(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, harm) on the lower left convex hull, the costliest, which harms least, first.

    For each price p >= 0 one of them has the least cost + p * harm. By Andrew's monotone chain (1979).
    """
    kept: list[int] = []
    for index in sorted(range(len(points)), key=lambda one: (points[one], one)):
        if kept and points[index][1] >= points[kept[-1]][1]:
            continue
        while len(kept) > 1 and _bends_up(points[kept[-2]], points[kept[-1]], points[index]):
            kept.pop()
        kept.append(index)
    return kept[::-1]


def _bends_up(first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> bool:
    """Whether the middle point lies on or above the line from the first to the last."""
    return (middle[1] - first[1]) * (last[0] - first[0]) >= (last[1] - first[1]) * (middle[0] - first[0])


COARSE, STRONG = 3, 0.8
"""Levels between two that exploring begins with; the share of a ladder that is strong."""
Place = tuple[int, ...]
"""A level in each of a layer's dimensions."""


class Exploring:
    """Which of a layer's settings to look at next, so that few looks find those on the hull: each third one of some
    dimensions, a few strong ones of the others, then neighbours of those that are on it so far. A setting away from it
    leads nowhere.
    """

    def __init__(self, sizes: Sequence[int], spread: Collection[int]) -> None:
        """`sizes`: levels of each dimension. `spread`: dimensions that begin with each third level, others at their
        weakest; from there alone the hull's strong end, where these matter most, would be far.
        """
        self.sizes = tuple(sizes)
        self.found: dict[Place, tuple[float, float]] = {}
        axes = range(len(sizes))
        weak = [sorted({0, *range(sizes[axis] - 1, 0, -COARSE)}) if axis in spread else [0] for axis in axes]
        strong = [
            [round(STRONG * (sizes[axis] - 1))] if axis in spread else range(sizes[axis] - 1, 0, -COARSE - 1)
            for axis in axes
        ]
        self._waiting = list(dict.fromkeys([*itertools.product(*weak), *itertools.product(*strong)]))

    def next(self) -> Place | None:
        """A setting without a figure; None if none is promising."""
        if not self._waiting:
            self._waiting = self._neighbours()
        return self._waiting.pop(0) if self._waiting else None

    def add(self, place: Place, cost: float, harm: float) -> None:
        self.found[place] = (cost, harm)

    def hull(self) -> list[Place]:
        places = list(self.found)
        return [places[index] for index in lower_hull([self.found[place] for place in places])]

    def _neighbours(self) -> list[Place]:
        near: dict[Place, None] = {}
        for place in self.hull():
            for axis, size in enumerate(self.sizes):
                for move in (-1, 1):
                    at = min(max(place[axis] + move, 0), size - 1)
                    near[(*place[:axis], at, *place[axis + 1 :])] = None
        return [place for place in near if place not in self.found]
