"""Sets of units that take as much from every block: what grouped convolutions ask of channels that are to go.

A constraint is an array of units [blocks, positions]; what goes has to go in equal numbers from each of its
blocks. Units of one signature (how many positions in which blocks of which constraints) are
interchangeable, so a combination of signatures that is balanced everywhere is looked for once and used as
often as there are units for it. Combinations are the solutions x >= 0 of M x = 0, where M says by how much
one unit of each signature exceeds the mean in each block: those on an edge of the cone that they form are
found by least squares, and where they need more units of a signature than there are, a search takes what
there is. Source of the least squares: Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter
23.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Place = tuple[int, int]
"""(constraint, block)"""

Signature = tuple[tuple[Place, int], ...]

TOLERANCE = 1e-9
WHOLE = 1e-6
"""Further from a whole number than this is not one."""

MULTIPLES = 64
"""Largest factor that makes whole numbers of a combination."""

STEPS = 300
"""Combinations that are tried for one signature."""

BRANCHES = 3
LARGEST = 64
"""Units at most in a set that is searched for."""


def balanced_sets(
    constraints: Sequence[np.ndarray], movable: np.ndarray
) -> tuple[list[list[int]], list[int]]:
    """(sets, units that fit in none). `movable`: bool by unit; others stay, and are in no set. A set may be
    one unit.
    """
    distinct = list(
        {constraint.tobytes() + bytes(constraint.shape): constraint for constraint in constraints}.values()
    )
    places: dict[int, Counter[Place]] = {}
    for number, constraint in enumerate(distinct):
        for block, units in enumerate(constraint):
            for unit in units[movable[units]].tolist():
                places.setdefault(unit, Counter())[number, block] += 1
    waiting: dict[Signature, list[int]] = {}
    for unit in sorted(places):
        waiting.setdefault(tuple(sorted(places[unit].items())), []).append(unit)
    blocks = [len(constraint) for constraint in distinct]
    sets: list[list[int]] = []
    left: list[int] = []
    while waiting:
        first = next(iter(waiting))
        available = {signature: len(units) for signature, units in waiting.items()}
        found = _edge(first, available, blocks) or _Search(available, blocks).complete(first)
        if found is None:
            left += waiting.pop(first)
            continue
        for _ in range(min(len(waiting[signature]) // count for signature, count in found.items())):
            sets.append(
                [waiting[signature].pop(0) for signature, count in found.items() for _ in range(count)]
            )
        waiting = {signature: units for signature, units in waiting.items() if units}
    return sets, left


def _edge(
    first: Signature, available: Mapping[Signature, int], blocks: Sequence[int]
) -> Counter[Signature] | None:
    """A combination with `first` that has no smaller one inside. What it would need too many of is left out
    of the next trial.
    """
    others = _connected(first, available)
    while True:
        signatures = [first, *others]
        excess = _excess(signatures, blocks)
        shares = np.concatenate([[1.0], nonnegative_least_squares(excess[:, 1:], -excess[:, 0])])
        multiples = [factor * shares for factor in range(1, MULTIPLES + 1)]
        counts = next((np.rint(one) for one in multiples if np.abs(one - np.rint(one)).max() < WHOLE), None)
        if counts is None or np.abs(excess @ counts).max() > WHOLE:
            return None
        scarce = {
            signature
            for signature, count in zip(signatures, counts, strict=True)
            if count > available[signature]
        }
        if not scarce:
            return Counter(
                {signature: int(count) for signature, count in zip(signatures, counts, strict=True) if count}
            )
        if first in scarce:
            return None
        others = [signature for signature in others if signature not in scarce]


def _connected(first: Signature, available: Iterable[Signature]) -> list[Signature]:
    """All other signatures that a constraint ties to `first`, over any number of others."""
    reached, others, found = (
        {constraint for (constraint, _), _ in first},
        [one for one in available if one != first],
        list[Signature](),
    )
    while near := [one for one in others if any(constraint in reached for (constraint, _), _ in one)]:
        reached |= {constraint for one in near for (constraint, _), _ in one}
        found += near
        others = [one for one in others if one not in set(near)]
    return found


def _excess(signatures: Sequence[Signature], blocks: Sequence[int]) -> np.ndarray:
    """By how much one unit of each signature exceeds the mean of a constraint in each of its blocks:
    float64 [blocks, signatures].
    """
    constraints = sorted({constraint for signature in signatures for (constraint, _), _ in signature})
    parts = {constraint: np.zeros((blocks[constraint], len(signatures))) for constraint in constraints}
    for column, signature in enumerate(signatures):
        for (constraint, block), count in signature:
            parts[constraint][block, column] = count
    return np.concatenate([part - part.mean(0) for part in parts.values()])


def nonnegative_least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """x >= 0, float64 [n], that minimizes |matrix x - target|; the columns [m, n] with x > 0 are
    independent.
    """
    x, positive = np.zeros(matrix.shape[1]), np.zeros(matrix.shape[1], bool)
    for _ in range(10 * x.size):
        slope = np.where(positive, -np.inf, matrix.T @ (target - matrix @ x))
        best = int(np.argmax(slope))
        if slope[best] <= TOLERANCE:
            break
        positive[best] = True
        while positive.any():
            wanted = np.zeros(x.size)
            wanted[positive] = np.linalg.lstsq(matrix[:, positive], target, rcond=None)[0]
            falls = positive & (wanted <= TOLERANCE)
            if not falls.any():
                x = wanted
                break
            step = (x[falls] / np.maximum(x[falls] - wanted[falls], TOLERANCE)).min()
            x = x + min(step, 1.0) * (wanted - x)
            positive &= x > TOLERANCE
            x[~positive] = 0
    return x


class _Search:
    """Depth first, always filling the first block that lacks something, with what leaves least lacking."""

    def __init__(self, available: dict[Signature, int], blocks: Sequence[int]) -> None:
        self.available, self.blocks, self.steps = available, blocks, STEPS
        self.at: dict[Place, list[Signature]] = {}
        for signature in available:
            for place, _ in signature:
                self.at.setdefault(place, []).append(signature)

    def complete(self, first: Signature) -> Counter[Signature] | None:
        return self._extend(Counter({first: 1}), Counter(dict(first)))

    def _extend(self, chosen: Counter[Signature], filled: Counter[Place]) -> Counter[Signature] | None:
        lacking = self._lacking(filled)
        if not lacking:
            return chosen
        self.steps -= 1
        if self.steps < 0 or chosen.total() >= LARGEST:
            return None
        options = [
            signature
            for signature in self.at.get(lacking[0][0], [])
            if chosen[signature] < self.available[signature]
        ]
        tried = sorted((self._missing(filled + Counter(dict(option))), option) for option in options)
        for _, option in tried[:BRANCHES]:
            found = self._extend(chosen + Counter({option: 1}), filled + Counter(dict(option)))
            if found is not None:
                return found
        return None

    def _lacking(self, filled: Counter[Place]) -> list[tuple[Place, int]]:
        """Blocks with fewer positions than another one of their constraint, and how many fewer."""
        lacking = []
        for number in sorted({constraint for constraint, _ in filled}):
            counts = [filled[number, block] for block in range(self.blocks[number])]
            lacking += [
                ((number, block), max(counts) - count)
                for block, count in enumerate(counts)
                if count < max(counts)
            ]
        return lacking

    def _missing(self, filled: Counter[Place]) -> tuple[int, int]:
        """How much is lacking, and in how many blocks."""
        lacking = self._lacking(filled)
        return sum(count for _, count in lacking), len(lacking)
