"""How many channels go: a share of each group's, a share of all, or so many that a share of the MACs is left.

Groups whose layers have a sparsity of their own lose that; where groups compete, it is among the others.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_lathe.errors import PassError
from onnx_lathe.passes.graph.coupling.rules import positions
from onnx_lathe.passes.graph.coupling.state import Coupling
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, is_constant, is_layer
from onnx_lathe.passes.numerics.sparsity.channel_choice import (
    MOST,
    Cost,
    Removal,
    Savings,
    remove_globally,
    remove_per_group,
    round_up,
)
from onnx_lathe.passes.prune_channels.groups import ChannelGroups


@dataclass(frozen=True)
class Amount:
    """How much goes: a share of each group's channels or of all, or down to a share `macs` of the MACs;
    `layers` by name pattern.
    """

    sparsity: float
    scope: str
    layers: Mapping[str, float]
    macs: float | None
    keep_multiple: int


@dataclass(frozen=True)
class Selection:
    """Channels while they are chosen; `own` is the sparsity of groups that the option `layers` names."""

    state: Removal
    groups: ChannelGroups
    importance: Callable[[], np.ndarray]
    own: Mapping[int, float]
    amount: Amount

    def per_group(self) -> None:
        """Removes a share of each group's channels."""
        self._remove({group: self.own.get(group, self.amount.sparsity) for group in self.groups.layers})
        self._round_up()

    def globally(self) -> None:
        """Removes a share of all channels, the least important first."""
        widths = self.groups.widths() * self._competing()
        self._remove_channels(widths, round(self.amount.sparsity * int(widths.sum())))
        self._round_up()

    def _remove_channels(self, widths: np.ndarray, wanted: int) -> None:
        """Of all units, until so many channels are removed."""
        remove_globally(
            self.state,
            self.importance,
            enough=lambda: int(widths[self.state.removed].sum()) >= wanted,
            most=max(MOST, self.amount.sparsity),
        )

    def to_macs(self, share: float, savings: Savings) -> None:
        """Removes channels until that share of the MACs is left, those of least importance per MAC first.
        Raises PassError if it cannot be reached.
        """
        before = savings.macs()
        self._competing()
        goal = wanted = share * before
        while True:  # rounding up gives some back, so that more has to go
            self._remove_until(goal, savings)
            reached = savings.macs()
            self._round_up()
            if savings.macs() <= wanted:
                return
            if reached > goal:
                raise PassError(
                    f"prune_channels(macs={share:g}) cannot be reached: "
                    f"{100 * savings.macs() / before:.3g} % of the MACs are left "
                    "when no more may go; give more"
                )
            goal = reached - (savings.macs() - wanted)

    def _remove_until(self, goal: float, savings: Savings) -> None:
        remove_globally(
            self.state,
            lambda: self.importance() / np.maximum(savings(), 1e-30),
            enough=lambda: savings.macs() <= goal,
        )

    def _competing(self) -> np.ndarray:
        """Removes what groups with a sparsity of their own lose. Returns the units of the others, which
        alone may go from now on: bool [units].
        """
        self._remove(self.own)
        free = np.unique(self.groups.of[self.state.free])
        competing = np.isin(self.groups.of, [group for group in free if group not in self.own])
        self.state.free &= competing
        return competing

    def _remove(self, shares: Mapping[int, float]) -> None:
        remove_per_group(self.state, self.importance(), self.groups.widths(), shares)

    def _round_up(self) -> None:
        views = {group: [written for _, written in layers] for group, layers in self.groups.layers.items()}
        round_up(self.state, views, self.amount.keep_multiple)


def layer_costs(coupling: Coupling, state: Removal, roots: np.ndarray) -> Iterator[Cost]:
    """MACs of every layer, those that lose nothing included. Raises PassError where they are not known."""
    known = {id(use.node): use for use in coupling.layers}
    for node in coupling.graph.nodes:
        if not is_layer(node) or (node.op == "MatMul" and not is_constant(node.inputs[WEIGHT_INPUT])):
            continue
        shape, use = coupling.shape(node.inputs[WEIGHT_INPUT]), known.get(id(node))
        times = positions(coupling, node)
        if times is None or shape is None or not all(isinstance(size, int) for size in shape):
            raise PassError(
                f"prune_channels(macs=...) counts MACs, but the shapes at {node.name} are not known; "
                "fix the sizes of the model's inputs"
            )
        name = node.inputs[WEIGHT_INPUT].name
        slots = (
            []
            if use is None
            else [coupling.slots[name, axis] for axis in range(len(shape)) if (name, axis) in coupling.slots]
        )
        views = tuple(state.number(roots[slot.units]) for slot in slots)
        yield Cost(
            times
            * math.prod(int(size or 0) for size in shape)
            / math.prod(slot.units.size for slot in slots),
            views,
        )
