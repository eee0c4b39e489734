"""Groups of channels: all that layers write into one sum, or what one layer writes alone."""

from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.graph import Node
from onnx_lathe.passes.graph.coupling.state import ChannelSets, Coupling
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT


@dataclass
class ChannelGroups:
    """Units by root: the group of each (-1: none), and the layers that write each group, in graph order."""

    of: np.ndarray
    layers: dict[int, list[tuple[Node, np.ndarray]]]

    @classmethod
    def found(cls, coupling: Coupling, roots: np.ndarray) -> "ChannelGroups":
        together = ChannelSets()
        together.fresh(roots.size)
        for _, written in coupling.births:
            members = np.unique(roots[written])
            together.tie(np.repeat(members[:1], members.size), members)
        groups, layers = np.full(roots.size, -1), dict[int, list[tuple[Node, np.ndarray]]]()
        for node, written in coupling.births:
            group = together.root(int(roots[written[0]]))
            groups[roots[written]] = group
            layers.setdefault(group, []).append((node, roots[written]))
        return cls(groups, layers)

    def widths(self) -> np.ndarray:
        """How many channels each unit is: int [units]. Layers that share a weight count once."""
        written = {
            node.inputs[WEIGHT_INPUT].name: units for layers in self.layers.values() for node, units in layers
        }
        return np.bincount(np.concatenate([np.zeros(0, np.int64), *written.values()]), minlength=self.of.size)
