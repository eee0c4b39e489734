"""Which channels stand and fall together: dependency analysis of a graph, channel by channel.

Every output channel of a layer begins as a unit of its own. Following the graph, units are tied together
where operators need them to be:

    Conv(x, W)         x's channel i with W[:, i]; the output's channel o, a new unit, with W[o] and bias[o]
    Add(x, y), BN(x)   x's channel i with y's channel i, or with the parameters' element i
    Concat, Split, Flatten, Transpose, ...   pass units on: each position of a tensor's channel axis knows its unit

So a unit is all that has to go when one of its channels goes, in every tensor that it runs through. What an
operator without a rule reads, and what a caller sees, is locked, with the reason. Rules are in rules.py,
removal in removal.py.
Source: Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, section 3; ties here are between
channels, not layers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.rewire import captured_names, is_output
from onnx_lathe.passes.graph.shapes import TensorType
from onnx_lathe.passes.numerics.sparsity.group_balance import balanced_sets

Survivors = Callable[[np.ndarray], np.ndarray]
"""Units, int64 [n] -> which of them stay, bool [n]."""

WRITTEN, READ, SCALE, OTHER = "written", "read", "scale", "other"
"""What a parameter's axis is to its units: a layer's outputs, a layer's inputs, a normalization's scale,
anything else.
"""


@dataclass(frozen=True)
class Channels:
    """Where a tensor has channels: `units`, int64, one for every position of `axis`."""

    axis: int
    units: np.ndarray


class ChannelSets:
    """Disjoint sets of channels; each set is one unit, known by its root."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._locks: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, count: int) -> np.ndarray:
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def root(self, unit: int) -> int:
        parent = self._parent
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    def roots(self, units: np.ndarray) -> np.ndarray:
        distinct, inverse = np.unique(units, return_inverse=True)
        found = np.fromiter((self.root(int(unit)) for unit in distinct), np.int64, distinct.size)
        return found[inverse].reshape(units.shape)

    def tie(self, first: np.ndarray, second: np.ndarray) -> None:
        """Makes one unit of each pair."""
        for one, other in zip(first.reshape(-1).tolist(), second.reshape(-1).tolist(), strict=True):
            low, high = sorted((self.root(one), self.root(other)))
            if low != high:
                self._parent[high] = low
                if high in self._locks:
                    self._locks.setdefault(low, self._locks.pop(high))

    def lock(self, units: np.ndarray, reason: str) -> None:
        """They have to stay; the first reason is kept."""
        for unit in np.unique(units).tolist():
            self._locks.setdefault(self.root(unit), reason)

    def lock_of(self, unit: int) -> str | None:
        return self._locks.get(self.root(unit))


@dataclass(frozen=True)
class Slot:
    """An axis of a float32 initializer, and the unit of each position. `role`: what the first node that
    reads it does with it.

    For the inputs of a grouped convolution `units` is [groups, positions]: in each block of rows, other
    positions may go.
    """

    tensor: Constant
    axis: int
    units: np.ndarray
    role: str


@dataclass(frozen=True)
class LayerUse:
    """A layer whose weight takes part, and the channels that it reads."""

    node: Node
    source: Channels | None


@dataclass
class Coupling:
    """What the analysis found; units are given as they were numbered, `units.roots` says which are one."""

    graph: Graph
    types: dict[str, TensorType]
    units: ChannelSets = field(default_factory=ChannelSets)
    channels: dict[str, Channels] = field(default_factory=dict)
    """Where each computed tensor has its channels, by name."""
    slots: dict[tuple[str, int], Slot] = field(default_factory=dict)
    layers: list[LayerUse] = field(default_factory=list)
    births: list[tuple[Node, np.ndarray]] = field(default_factory=list)
    """(layer, its output units), in graph order."""
    balances: list[tuple[Node, np.ndarray]] = field(default_factory=list)
    """(grouped convolution, units [groups, positions]): as many have to go from every group."""
    adapts: list[Callable[[Survivors], None]] = field(default_factory=list)
    """What has to be done to nodes when channels go: attributes, and constants that hold sizes."""
    _uses: dict[str, set[tuple[int, int]]] = field(default_factory=dict)

    def of(self, tensor: Tensor) -> Channels | None:
        return None if isinstance(tensor, Constant) else self.channels.get(tensor.name)

    def shape(self, tensor: Tensor) -> tuple[int | str | None, ...] | None:
        if isinstance(tensor, Constant):
            return tuple(int(size) for size in tensor.shape)
        known = self.types.get(tensor.name)
        return None if known is None else known.shape

    def put(self, tensors: Sequence[Tensor], axis: int, units: np.ndarray) -> None:
        for tensor in tensors:
            if not tensor.is_empty():
                self.channels[tensor.name] = Channels(axis, units)

    def fixed(self, count: int, reason: str) -> np.ndarray:
        """New units that have to stay."""
        units = self.units.fresh(count)
        self.units.lock(units, reason)
        return units

    def lock(self, tensors: Sequence[Tensor], reason: str) -> None:
        for tensor in tensors:
            if (found := self.of(tensor)) is not None:
                self.units.lock(found.units, reason)

    def slot(self, node: Node, index: int, axis: int, units: np.ndarray, role: str = OTHER) -> None:
        """Ties positions on an axis of the node's input `index`, an initializer, with `units`."""
        tensor = node.inputs[index]
        if tensor.dtype != np.float32:
            self.units.lock(units, f"its parameter {tensor.name} is {tensor.dtype}, not float32")
            return
        self._uses.setdefault(tensor.name, set()).add((id(node), index))
        known = self.slots.setdefault((tensor.name, axis), Slot(tensor, axis, units, role))
        if known.units.shape != units.shape:
            self.units.lock(
                np.concatenate([known.units.reshape(-1), units.reshape(-1)]),
                f"its parameter {tensor.name} has two uses",
            )
        elif known.units is not units:
            self.units.tie(known.units, units)

    def lock_what_others_see(self) -> None:
        """Channels of outputs, of what bodies of If or Loop read, and of initializers that are read in any
        other way too.
        """
        captured = captured_names(self.graph)
        for name, found in self.channels.items():
            if name in captured:
                self.units.lock(found.units, f"a body of If, Loop or Scan reads {name}")
        for tensor in self.graph.outputs:
            if (seen := self.of(tensor)) is not None:
                self.units.lock(seen.units, f"it writes the model's output '{tensor.name}'")
        for slot in self.slots.values():
            if reason := self._seen(slot.tensor, captured):
                self.units.lock(slot.units, reason)

    def _seen(self, tensor: Constant, captured: set[str]) -> str | None:
        if is_output(self.graph, tensor):
            return f"its parameter {tensor.name} is an output of the model"
        if tensor.name in captured:
            return f"a body of If, Loop or Scan reads its parameter {tensor.name}"
        known = self._uses[tensor.name]
        for node in tensor.outputs:
            if any(
                source is tensor and (id(node), index) not in known
                for index, source in enumerate(node.inputs)
            ):
                return f"its parameter {tensor.name} is also read by {node.name}"
        return None

    def balance(self) -> None:
        """Ties units of grouped convolutions into sets that leave their groups of one size; what fits in
        none is locked.
        """
        roots = self.units.roots(np.arange(len(self.units)))
        movable = np.array([self.units.lock_of(int(root)) is None for root in roots], bool)
        sets, left = balanced_sets([roots[units] for _, units in self.balances], movable)
        for members in sets:
            self.units.tie(np.repeat(members[:1], len(members)), np.array(members))
        for unit in left:
            node = next(node for node, units in self.balances if (roots[units] == unit).any())
            self.units.lock(np.array([unit]), f"the groups of {node.name} would not stay of one size")

    def views(self) -> Iterator[np.ndarray]:
        """Units along every axis that must not become empty."""
        yield from (found.units for found in self.channels.values())
        yield from (slot.units for slot in self.slots.values())
