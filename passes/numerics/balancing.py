"""Sets of units that take as much from every block: what grouped convolutions ask of channels that are to go.

A constraint is an array of units [blocks, positions]; what goes has to go in equal numbers from each of its blocks. Units of one
signature (how many positions in which blocks of which constraints) are interchangeable, so a combination of signatures that is balanced
everywhere is looked for once and used as often as there are units for it.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

Place = tuple[int, int]
"""(constraint, block)"""

Signature = tuple[tuple[Place, int], ...]

STEPS = 300
"""Combinations that are tried for one signature."""

BRANCHES = 3
LARGEST = 64
"""Units in a set at most."""


def balanced_sets(constraints: Sequence[np.ndarray], movable: np.ndarray) -> tuple[list[list[int]], list[int]]:
    """(sets, units that fit in none). `movable`: bool by unit; others stay, and are in no set. A set may be one unit."""
    distinct = list({constraint.tobytes() + bytes(constraint.shape): constraint for constraint in constraints}.values())
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
        found = _Search({signature: len(units) for signature, units in waiting.items()}, blocks).complete(first)
        if found is None:
            left += waiting.pop(first)
            continue
        for _ in range(min(len(waiting[signature]) // count for signature, count in found.items())):
            sets.append([waiting[signature].pop(0) for signature, count in found.items() for _ in range(count)])
        waiting = {signature: units for signature, units in waiting.items() if units}
    return sets, left


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
        options = [signature for signature in self.at.get(lacking[0][0], []) if chosen[signature] < self.available[signature]]
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
            lacking += [((number, block), max(counts) - count) for block, count in enumerate(counts) if count < max(counts)]
        return lacking

    def _missing(self, filled: Counter[Place]) -> tuple[int, int]:
        """How much is lacking, and in how many blocks."""
        lacking = self._lacking(filled)
        return sum(count for _, count in lacking), len(lacking)
