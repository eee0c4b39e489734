"""Which rank each layer gets.

A layer keeps E(r) = sum of its first r energies / sum of all; a network is taken to keep the product over
its layers. Greedy steps, least log E lost per multiply-accumulate (MAC) saved first, bring the whole
network within a budget of MACs. Where errors were measured on held-back samples, the sum of these is made least
instead, by the dynamic programme of allocation.py.
Source: Zhang et al., TPAMI 2016, section 3.4: there, too, the product of energies is maximized under a
bound on MACs by such steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnx_lathe.passes.numerics.allocation import allocate


@dataclass(frozen=True)
class Ladder:
    """One layer's choices. `energies` [full rank], descending; MACs whole and per rank; `ranks` that may be
    chosen, rising.
    """

    energies: np.ndarray
    whole: float
    per_rank: float
    ranks: tuple[int, ...]
    measured: np.ndarray | None = None
    """Relative squared error at each rank, [full rank + 1], if it was measured."""

    @cached_property
    def _sums(self) -> np.ndarray:
        """Energy of the first 0, 1, ... directions."""
        return np.concatenate([[0.0], np.cumsum(self.energies)])

    def kept(self, rank: int | None) -> float:
        """Share of the energy that a rank keeps; of a layer that is left as it is (None), all. Of no
        energy, nothing can be lost.
        """
        if rank is None or self._sums[-1] <= 0:
            return 1.0
        return float(self._sums[rank] / self._sums[-1])

    def macs(self, rank: int | None) -> float:
        return self.whole if rank is None else rank * self.per_rank

    def lost(self, rank: int | None) -> float:
        return -math.log(max(self.kept(rank), 1e-300))


def saving_ranks(full: int, whole: float, per_rank: float, multiple: int, least: float) -> tuple[int, ...]:
    """Ranks with fewer MACs than the whole layer, at least `least` of the full rank: multiples of
    `multiple`, if the full rank has any.
    """
    return tuple(rank for rank in allowed_ranks(full, multiple, least) if rank * per_rank < whole)


def allowed_ranks(full: int, multiple: int, least: float) -> range:
    """Ranks from `least` of the full one: multiples of `multiple`, if the full rank has any."""
    step = multiple if multiple <= full else 1
    low = max(1, math.ceil(least * full))
    return range(step * math.ceil(low / step), full + 1, step)


def rank_for_energy(energies: np.ndarray, energy: float, multiple: int) -> int:
    """The smallest rank that keeps this share, rounded up to a multiple; at most the full rank."""
    total = float(energies.sum())
    if total <= 0:
        return min(multiple, len(energies))
    kept = np.cumsum(energies) / total
    rank = int(np.searchsorted(kept, energy - 1e-12)) + 1
    return min(multiple * math.ceil(rank / multiple), len(energies))


def within_budget(ladders: Sequence[Ladder], budget: float) -> list[int | None]:
    """A rank for each ladder, None to leave the layer, so that MACs sum to at most `budget`; the fewest
    there are if they cannot.
    """
    options: list[list[int | None]] = [[None, *reversed(ladder.ranks)] for ladder in ladders]
    macs = [
        np.array([ladder.macs(rank) for rank in own]) for ladder, own in zip(ladders, options, strict=True)
    ]
    lost = [
        np.array([ladder.lost(rank) for rank in own]) for ladder, own in zip(ladders, options, strict=True)
    ]
    at = [0] * len(ladders)
    total = sum(ladder.whole for ladder in ladders)
    steps = [_cheapest(macs[number], lost[number], 0) for number in range(len(ladders))]
    while total > budget:
        ratio, number = min(((step[0], number) for number, step in enumerate(steps)), default=(math.inf, 0))
        if ratio == math.inf:
            break
        to = steps[number][1]
        total -= macs[number][at[number]] - macs[number][to]
        at[number] = to
        steps[number] = _cheapest(macs[number], lost[number], to)
    while True:  # the last steps may have saved more than was asked for
        gain, number, to = 0.0, 0, 0
        for other, (own_macs, own_lost, now) in enumerate(zip(macs, lost, at, strict=True)):
            gains = np.where(
                total - (own_macs[now] - own_macs[:now]) <= budget, own_lost[:now] - own_lost[now], 0.0
            )
            if gains.size and gains.min() < gain:
                gain, number, to = float(gains.min()), other, int(gains.argmin())
        if gain == 0:
            return [option[place] for option, place in zip(options, at, strict=True)]
        total -= macs[number][at[number]] - macs[number][to]
        at[number] = to


def least_error(ladders: Sequence[Ladder], budget: float) -> list[int | None]:
    """As `within_budget`, for ladders whose errors are measured."""
    options: list[list[int | None]] = [[None, *reversed(ladder.ranks)] for ladder in ladders]
    macs = [
        np.array([ladder.macs(rank) for rank in own]) for ladder, own in zip(ladders, options, strict=True)
    ]
    errors = [
        np.array([0.0 if rank is None else np.asarray(ladder.measured)[rank] for rank in own])
        for ladder, own in zip(ladders, options, strict=True)
    ]
    return [option[place] for option, place in zip(options, allocated(errors, macs, budget), strict=True)]


def allocated(errors: Sequence[np.ndarray], macs: Sequence[np.ndarray], budget: float) -> list[int]:
    """For each layer the place of its setting, so that errors sum to the least within the budget; the cheapest ones if
    even these cost more.
    """
    found = allocate(errors, macs, budget)
    return [int(np.argmin(one)) for one in macs] if found is None else found


def _cheapest(macs: np.ndarray, lost: np.ndarray, at: int) -> tuple[float, int]:
    """(least energy lost per MAC saved by a step from `at` on, where it leads); infinite where there is no
    further step.
    """
    if at + 1 == len(macs):
        return math.inf, at
    ratios = (lost[at + 1 :] - lost[at]) / (macs[at] - macs[at + 1 :])
    return float(ratios.min()), at + 1 + int(ratios.argmin())
