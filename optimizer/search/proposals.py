"""What to try: settings that share out a loss by each layer's sensitivity, uniform ones, and steps around the best.

A layer's setting costs so much, and does so much harm: the share of noise in the outputs when it alone is changed.
Small noises of different layers add up, so that for a price of noise each layer's best setting can be chosen by
itself, and each price gives one setting of the network.
Source: Shoham and Gersho, "Efficient Bit Allocation for an Arbitrary Set of Quantizers", IEEE ASSP 36(9), 1988; that
noises of layers add up: Zhou et al., "Adaptive Quantization for Deep Neural Network", AAAI 2018, section 3.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_lathe.optimizer.search.hull import lower_hull
from onnx_lathe.optimizer.search.layerwise import weakest
from onnx_lathe.optimizer.search.space import Settings, Space, Value

STARTS = 10
"""Allocations that are tried at first."""
UNIFORM = (0.2, 0.4, 0.6, 0.8)
"""Shares of each ladder that uniform settings take."""
MOST_UNIFORM = 16


@dataclass(frozen=True)
class Option:
    """One setting of one layer: what it costs, in units of what is minimized, and its harm."""

    own: Mapping[str, Value]
    cost: float
    harm: float


Table = Mapping[str, Sequence[Option]]
"""Layer -> its options."""


def as_json(table: Table) -> dict[str, Any]:
    return {
        layer: [[dict(one.own), one.cost, one.harm] for one in options] for layer, options in table.items()
    }


def from_json(found: Mapping[str, Any]) -> dict[str, list[Option]]:
    return {layer: [Option(*entry) for entry in options] for layer, options in found.items()}


def allocations(space: Space, table: Table) -> list[dict[str, Value]]:
    """A setting for each price of noise, the costliest first; from one to the next, one layer changes."""
    ladders = [rungs for options in table.values() if (rungs := on_hull(options))]
    if not any(len(rungs) > 1 for rungs in ladders):
        return []
    settings = weakest(space)
    for rungs in ladders:
        settings |= rungs[0].own
    moves = [
        ((after.harm - before.harm) / (before.cost - after.cost), number, after)
        for number, rungs in enumerate(ladders)
        for before, after in itertools.pairwise(rungs)
    ]
    found = [settings]
    for _, _, after in sorted(moves, key=lambda move: move[:2]):
        settings = {**settings, **after.own}
        found.append(settings)
    return found


def on_hull(options: Sequence[Option]) -> list[Option]:
    """Those that some price of noise chooses, the costliest first."""
    known = [one for one in options if math.isfinite(one.harm)]
    return [known[index] for index in lower_hull([(one.cost, one.harm) for one in known])]


def spread(items: Sequence[dict[str, Value]], count: int) -> list[dict[str, Value]]:
    """So many of the items, evenly, the middle first."""
    places = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    order = sorted(places, key=lambda place: abs(place - len(items) / 2))
    return [items[place] for place in order]


def uniform(space: Space) -> list[dict[str, Value]]:
    """Every layer as strong as the others, step by step in all combinations."""
    ladders = [
        step for step in space.tuned if any(one.step == step and one.levels for one in space.dimensions)
    ]
    shares = UNIFORM if len(ladders) < 2 else UNIFORM[: max(2, int(MOST_UNIFORM ** (1 / len(ladders))))]
    found = []
    for chosen in itertools.product(shares, repeat=len(ladders)):
        settings = weakest(space)
        share = dict(zip(ladders, chosen, strict=True))
        for one in space.dimensions:
            if one.levels:
                settings[one.name] = one.levels[round(share[one.step] * (len(one.levels) - 1))]
        found.append(settings)
    return found[:MOST_UNIFORM]


class Proposals:
    """Goes on from the best: between the allocations that pass and those that fail, then by single steps."""

    def __init__(self, space: Space, table: Table, seed: int) -> None:
        self.space, self.table = space, table
        self.ladder = allocations(space, table)
        self.random = np.random.default_rng(seed)
        self._places = {repr(sorted(one.items())): place for place, one in enumerate(self.ladder)}
        self._options = {layer: {_key(one.own): one for one in options} for layer, options in table.items()}
        hulls = {layer: on_hull(options) for layer, options in table.items()}
        self._rungs = {layer: rungs for layer, rungs in hulls.items() if len(rungs) > 1}

    def starts(self) -> list[dict[str, Value]]:
        return [*spread(self.ladder, STARTS), *uniform(self.space)]

    def between(self, tried: Mapping[str, bool]) -> dict[str, Value] | None:
        """The allocation halfway between the strongest that passed and the next that failed; None when they are
        neighbours. `tried`: whether each of the settings tried, by `repr`, passed.
        """
        verdicts = {self._places[key]: passed for key, passed in tried.items() if key in self._places}
        passed = max((place for place, good in verdicts.items() if good), default=-1)
        failed = min((place for place, good in verdicts.items() if not good and place > passed), default=None)
        if failed is None:
            failed = len(self.ladder)
        middle = (passed + failed) // 2
        return self.ladder[middle] if passed < middle < failed and middle not in verdicts else None

    def climb(self, best: Settings, tried: Collection[str]) -> dict[str, Value] | None:
        """One layer of the best a rung stronger: by the table, the one whose step adds least noise for what it saves, of
        those that were not tried; None if all were. `tried`: settings by `repr`.
        """
        steps = []
        for number, (layer, rungs) in enumerate(sorted(self._rungs.items())):
            place = self._place(layer, best)
            if place + 1 == len(rungs):
                continue
            before, after = rungs[place], rungs[place + 1]
            moved = {**best, **after.own}
            if moved != dict(best) and repr(sorted(moved.items())) not in tried:
                steps.append(((after.harm - before.harm) / (before.cost - after.cost), number, moved))
        return min(steps, key=lambda step: step[:2])[2] if steps else None

    def step(self, best: Settings) -> dict[str, Value]:
        """A few layers stronger, perhaps others weaker, among the settings that some price of noise chooses: cheaper
        by the table.
        """
        moved = dict(best)
        for _ in range(50):
            moved = dict(best)
            down, up = int(self.random.integers(1, 4)), int(self.random.integers(0, 3))
            chosen = self.random.permutation(sorted(self._rungs))[: down + up]
            for order, layer in enumerate(chosen):
                rungs = self._rungs[layer]
                place = self._place(layer, best) + (1 if order < down else -1)
                moved |= rungs[min(max(place, 0), len(rungs) - 1)].own
            if moved != dict(best) and self._gain(best, moved):
                break
        return moved

    def _place(self, layer: str, settings: Settings) -> int:
        """Which of a layer's rungs the settings are on, or next to by cost; the middle one where that is unknown."""
        rungs = self._rungs[layer]
        known = self._options[layer].get(_key({name: settings[name] for name in rungs[0].own}))
        cost = rungs[len(rungs) // 2].cost if known is None else known.cost
        return min(range(len(rungs)), key=lambda place: abs(rungs[place].cost - cost))

    def _gain(self, best: Settings, moved: Settings) -> bool:
        """Whether the move pays by the table: cheaper, and not at a much higher price of noise than it must be."""
        before, after = self._total(best), self._total(moved)
        if before is None or after is None:
            return True
        (cost, harm), (new_cost, new_harm) = before, after
        return new_cost < cost and new_harm < 1.3 * harm + 1e-12

    def _total(self, settings: Settings) -> tuple[float, float] | None:
        cost = harm = 0.0
        for layer, options in self._options.items():
            first = next(iter(self.table[layer]), None)
            if first is None:
                continue
            known = options.get(_key({name: settings[name] for name in first.own}))
            if known is None:
                return None
            cost, harm = cost + known.cost, harm + known.harm
        return cost, harm


def _key(own: Settings) -> str:
    return repr(sorted(own.items()))
