"""How many channels each group loses where groups compete and it was measured what they cost: those with which the layers
that read them lose least together, within what may be left.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.numerics.allocation import allocate
from onnx_lathe.passes.numerics.sparsity.channel_choice import Savings
from onnx_lathe.passes.prune_channels.amount import Selection
from onnx_lathe.passes.prune_channels.answers import Curve

ROUNDS = 50
STEP = 1e-4
"""Of all MACs: the least by which a round asks for more than the one before."""


@dataclass(frozen=True)
class Allocation(Selection):
    """`curves`: by group, in what order its channels go and what that costs."""

    curves: Mapping[int, Curve]

    def _remove_channels(self, widths: np.ndarray, wanted: int) -> None:
        competing = self._curves()
        gone = [np.cumsum([0, *widths[curve.order]])[curve.stops] for curve in competing]
        stops = self._stops(competing, gone, wanted)
        self._take(competing, stops)
        self._give_back(competing, stops, gone, widths, wanted)

    def _give_back(
        self,
        competing: list[Curve],
        stops: list[int],
        gone: list[np.ndarray],
        widths: np.ndarray,
        wanted: int,
    ) -> None:
        """Gives back what went beyond `wanted` channels, as stops are some units apart: the last units of groups, first of
        those whose last ones cost most.
        """
        more = int(widths[self.state.removed].sum()) - wanted

        def cost(place: int) -> float:
            curve = competing[place]
            at = int(np.searchsorted(curve.stops, stops[place]))
            lost = float(np.diff(curve.losses)[at - 1]) if at else 0.0
            return lost / max(float(np.diff(gone[place])[at - 1]), 1.0) if at else 0.0

        for place in sorted(range(len(competing)), key=cost, reverse=True):
            for unit in competing[place].order[: stops[place]][::-1]:
                if widths[unit] > more:
                    break
                if self.state.removed[unit]:
                    self.state.restore(int(unit))
                    more -= int(widths[unit])

    def _remove_until(self, goal: float, savings: Savings) -> None:
        """What one group saves is counted as if the others lost nothing, and where they do it saves less: each round asks
        for what the one before was short of.
        """
        competing = self._curves()
        self._take(competing, [0] * len(competing))
        whole = savings.macs()
        saved = [self._saved(curve, savings) for curve in competing]
        wanted = whole - goal
        for _ in range(ROUNDS):
            stops = self._stops(competing, saved, wanted)
            self._take(competing, stops)
            short = savings.macs() - goal
            if short <= 0 or all(
                stop == curve.stops[-1] for stop, curve in zip(stops, competing, strict=True)
            ):
                return
            wanted += max(short, STEP * whole)

    def _curves(self) -> list[Curve]:
        return [curve for group, curve in self.curves.items() if group not in self.own and curve.stops[-1]]

    def _saved(self, curve: Curve, savings: Savings) -> np.ndarray:
        """MACs that the group alone saves at each of its stops."""
        whole, found = savings.macs(), []
        for units in np.split(curve.order, curve.stops)[:-1]:
            for unit in units:
                self.state.remove(int(unit))
            found.append(whole - savings.macs())
        self._take([curve], [0])
        return np.array(found)

    def _stops(self, competing: list[Curve], saved: list[np.ndarray], wanted: float) -> list[int]:
        """How many units of each go, so that `wanted` are saved; as many as may, if that is not enough."""
        chosen = allocate([curve.losses for curve in competing], [-one for one in saved], -wanted)
        if chosen is None:
            return [int(curve.stops[-1]) for curve in competing]
        return [int(curve.stops[place]) for curve, place in zip(competing, chosen, strict=True)]

    def _take(self, competing: list[Curve], stops: list[int]) -> None:
        """Removes so many of each, and gives back what was removed of them before."""
        for curve in competing:
            for unit in curve.order[self.state.removed[curve.order]]:
                self.state.restore(int(unit))
        for curve, stop in zip(competing, stops, strict=True):
            for unit in curve.order[:stop]:
                self.state.remove(int(unit))
