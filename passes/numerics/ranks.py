"""Which rank each layer gets.

A layer keeps E(r) = sum of its first r energies / sum of all; a network is taken to keep the product over its layers. Greedy steps, least
log E lost per multiply-accumulate (MAC) saved first, bring the whole network within a budget of MACs.
Source: Zhang et al., TPAMI 2016, section 3.4: there, too, the product of energies is maximized under a bound on MACs by such steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ladder:
    """One layer's choices. `energies` [full rank], descending; MACs whole and per rank; `ranks` that may be chosen, rising."""

    energies: np.ndarray
    whole: float
    per_rank: float
    ranks: tuple[int, ...]

    def kept(self, rank: int | None) -> float:
        """Share of the energy that a rank keeps; of a layer that is left as it is (None), all. Of no energy, nothing can be lost."""
        total = float(self.energies.sum())
        return 1.0 if rank is None or total <= 0 else float(self.energies[:rank].sum()) / total

    def macs(self, rank: int | None) -> float:
        return self.whole if rank is None else rank * self.per_rank

    def lost(self, rank: int | None) -> float:
        return -math.log(max(self.kept(rank), 1e-300))


def saving_ranks(full: int, whole: float, per_rank: float, multiple: int, least: float) -> tuple[int, ...]:
    """Ranks with fewer MACs than the whole layer, at least `least` of the full rank: multiples of `multiple`, if the full rank has any."""
    step = multiple if multiple <= full else 1
    low = max(1, math.ceil(least * full))
    return tuple(rank for rank in range(step * math.ceil(low / step), full + 1, step) if rank * per_rank < whole)


def rank_for_energy(energies: np.ndarray, energy: float, multiple: int) -> int:
    """The smallest rank that keeps this share, rounded up to a multiple; at most the full rank."""
    total = float(energies.sum())
    if total <= 0:
        return min(multiple, len(energies))
    kept = np.cumsum(energies) / total
    rank = int(np.searchsorted(kept, energy - 1e-12)) + 1
    return min(multiple * math.ceil(rank / multiple), len(energies))


def within_budget(ladders: Sequence[Ladder], budget: float) -> list[int | None]:
    """A rank for each ladder, None to leave the layer, so that MACs sum to at most `budget`; the fewest there are if they cannot."""
    options: list[list[int | None]] = [[None, *reversed(ladder.ranks)] for ladder in ladders]
    at = [0] * len(ladders)
    total = sum(ladder.whole for ladder in ladders)

    def saved(number: int, to: int) -> float:
        return ladders[number].macs(options[number][at[number]]) - ladders[number].macs(options[number][to])

    def lost(number: int, to: int) -> float:
        return ladders[number].lost(options[number][to]) - ladders[number].lost(options[number][at[number]])

    while total > budget:
        steps = [
            (lost(number, to) / saved(number, to), number, to)
            for number in range(len(ladders))
            for to in range(at[number] + 1, len(options[number]))
        ]
        if not steps:
            break
        _, number, to = min(steps)
        total -= saved(number, to)
        at[number] = to
    while True:  # the last steps may have saved more than was asked for
        back = [
            (lost(number, to), number, to)
            for number in range(len(ladders))
            for to in range(at[number])
            if total - saved(number, to) <= budget
        ]
        if not back or min(back)[0] >= 0:
            return [option[place] for option, place in zip(options, at, strict=True)]
        _, number, to = min(back)
        total -= saved(number, to)
        at[number] = to
