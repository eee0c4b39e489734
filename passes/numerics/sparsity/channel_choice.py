"""Which channels go: by importance, in each group or all together, so that nothing runs empty and counts
come out round.

Units (channels that only go together) are numbered; a view is an array of the units along one axis of one
tensor. A unit may be several times in a view, and in many views.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MOST = 0.9
"""Largest share of a group that goes when groups compete: without a bound the cheapest layer would end with
one channel.
"""

SLACK = 0.1
"""A group of few units may lose this share more than was asked for, if that is nearer than one unit less."""


@dataclass(frozen=True)
class Cost:
    """MACs of one layer: `factor` for each combination of what is left in `views`, two of them at most."""

    factor: float
    views: tuple[int, ...]


class Removal:
    """Units that are removed one by one, while every view keeps at least one position."""

    def __init__(self, size: int, views: Iterable[np.ndarray], groups: np.ndarray, free: np.ndarray) -> None:
        """`groups`: int [size], the group of each unit, -1 for none. `free`: bool [size], may go."""
        self.removed = np.zeros(size, bool)
        self.groups, self.free = groups, free
        self.numbers: dict[bytes, int] = {}
        self.counts: list[int] = []
        self.inside: list[list[tuple[int, int]]] = [[] for _ in range(size)]
        self.order: list[int] = []
        for view in views:
            self._add(view)

    def _add(self, view: np.ndarray) -> None:
        if self.numbers.setdefault(view.tobytes(), len(self.counts)) < len(self.counts):
            return
        for unit, times in zip(*np.unique(view, return_counts=True), strict=True):
            self.inside[unit].append((len(self.counts), int(times)))
        self.counts.append(view.size)

    def number(self, view: np.ndarray) -> int:
        return self.numbers[view.tobytes()]

    def remove(self, unit: int) -> bool:
        """False, with nothing done, where a view would run empty."""
        if any(self.counts[view] <= times for view, times in self.inside[unit]):
            return False
        self._count(unit, -1)
        self.removed[unit] = True
        self.order.append(unit)
        return True

    def _count(self, unit: int, sign: int) -> None:
        for view, times in self.inside[unit]:
            self.counts[view] += sign * times

    def restore(self, unit: int) -> None:
        self._count(unit, 1)
        self.removed[unit] = False
        self.order.remove(unit)


def remove_per_group(
    state: Removal, scores: np.ndarray, widths: np.ndarray, sparsity: Mapping[int, float]
) -> None:
    """Removes that share of each group's channels, those of least importance per channel first; ties go by
    position.

    `widths`: channels of each unit, int [units].
    """
    for group, share in sparsity.items():
        members = np.flatnonzero(state.groups == group)
        total, gone = float(widths[members].sum()), 0.0
        candidates = members[state.free[members]]
        for unit in candidates[
            np.argsort(scores[candidates] / np.maximum(widths[candidates], 1), kind="stable")
        ]:
            nearer = gone + widths[unit] / 2 <= share * total
            if nearer and gone + widths[unit] <= (share + SLACK) * total and state.remove(int(unit)):
                gone += widths[unit]


def remove_globally(
    state: Removal, ranks: Callable[[], np.ndarray], enough: Callable[[], bool], most: float = MOST
) -> None:
    """Removes units over all groups, those of lowest rank first, until there are `enough`; of no group more
    than the share `most`.

    `ranks()`, float [units], may change as units go; it is asked again after every few hundredth of them.
    """
    candidates = np.flatnonzero(state.free & ~state.removed & (state.groups >= 0))
    sizes = np.bincount(state.groups[state.groups >= 0], minlength=1)
    gone = np.bincount(state.groups[state.removed], minlength=sizes.size)
    at_once = max(1, candidates.size // 400)
    while candidates.size and not enough():
        ranked = candidates[np.argsort(ranks()[candidates], kind="stable")]
        for unit in ranked[:at_once]:
            group = state.groups[unit]
            if gone[group] + 1 <= most * sizes[group] and state.remove(int(unit)):
                gone[group] += 1
            if enough():
                return
        candidates = np.sort(ranked[at_once:])


def round_up(state: Removal, views: Mapping[int, Sequence[np.ndarray]], multiple: int) -> None:
    """Gives back the last units that went, until what is left of each group's `views` is a multiple, or all
    of it.
    """
    for group, arrays in views.items():
        mine = [unit for unit in state.order if state.groups[unit] == group]
        numbers = [state.number(array) for array in arrays]
        while mine and any(state.counts[number] % multiple for number in numbers):
            state.restore(mine.pop())


class Shares:
    """Importance as the share that a unit has of what is left in each part, added up over the parts.

    A part is a layer, say, with an energy for each channel. Whatever the scale of its numbers, a layer
    counts once; and as it loses channels the others become more important: together they lower the
    logarithm of what is left.
    """

    def __init__(self, state: Removal, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """`parts`: (units, int [n]; energies, float64 [n], not negative)."""
        self.state = state
        self.units = np.concatenate([units for units, _ in parts]) if parts else np.zeros(0, np.int64)
        self.values = np.concatenate([values for _, values in parts]) if parts else np.zeros(0)
        self.part = np.repeat(np.arange(len(parts)), [units.size for units, _ in parts])

    def __call__(self) -> np.ndarray:
        left = np.bincount(self.part, weights=self.values * ~self.state.removed[self.units])
        return np.bincount(
            self.units,
            weights=self.values / np.maximum(left, 1e-300)[self.part],
            minlength=self.state.removed.size,
        )


class Savings:
    """MACs of a network as its views shrink, and what each unit would save."""

    def __init__(self, state: Removal, costs: Sequence[Cost]) -> None:
        self.state, self.costs = state, costs
        self.factors = np.array([cost.factor for cost in costs])
        sides = [(*cost.views, -1, -1)[:2] for cost in costs]
        self.first, self.second = np.array(sides, np.int64).reshape(-1, 2).T
        readers: dict[int, list[tuple[int, int]]] = {}
        for number, cost in enumerate(costs):
            for side, view in enumerate(cost.views):
                readers.setdefault(view, []).append((number, side))
        entries: dict[tuple[int, int], list[int]] = {}
        for unit, inside in enumerate(state.inside):
            for view, times in inside:
                for number, side in readers.get(view, ()):
                    entries.setdefault((unit, number), [0, 0])[side] += times
        keys, values = (
            np.array(list(entries), np.int64).reshape(-1, 2),
            np.array(list(entries.values()), np.int64).reshape(-1, 2),
        )
        self.units, self.layers, self.less = keys[:, 0], keys[:, 1], values

    def _sides(self) -> tuple[np.ndarray, np.ndarray]:
        counts = np.array([*self.state.counts, 1], np.float64)  # the last for layers with fewer views
        return counts[self.first], counts[self.second]

    def macs(self) -> float:
        first, second = self._sides()
        return float((self.factors * first * second).sum())

    def __call__(self) -> np.ndarray:
        first, second = (side[self.layers] for side in self._sides())
        saved = self.factors[self.layers] * (
            first * second - (first - self.less[:, 0]) * (second - self.less[:, 1])
        )
        return np.bincount(self.units, weights=saved, minlength=len(self.state.inside))
