"""Which nodes of a model each kernel of ONNX Runtime computes, so that its time can be said of them.

ONNX Runtime fuses nodes (Conv, BatchNormalization, Add and Relu are one kernel), folds constants, and changes layouts.
Names of tensors that stay tell what a kernel gives back; walking back from there, up to what another kernel gave, finds
what it computes. A kernel's time is that of all these together, and nobody can say how it is shared among them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnx_lathe.runtime.running.profiling import ModelProfiler, marked_place

CHANGES_LAYOUT = ("ReorderInput", "ReorderOutput")
_BLOCKED = "_nchwc"
"""ONNX Runtime ends the name of a convolution on blocked channels so; before it stands the tensor that it gives."""
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "ConvInteger", "MatMulInteger")
"""A kernel computes at most one of these, unless it says otherwise itself: what is behind it is another kernel's."""

PREPARES = ("Cast", "DequantizeLinear", "QuantizeLinear", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""What ONNX Runtime puts before a product bears the product's name."""


@dataclass(frozen=True)
class Kernel:
    """`op` as ONNX Runtime calls it; places of the model's nodes that it computes, in their order."""

    op: str
    ms: float
    nodes: tuple[int, ...]


def kernels(model: onnx.GraphProto, executed: onnx.GraphProto, times: Mapping[str, float]) -> list[Kernel]:
    """Every kernel that took time. `times`: milliseconds by the name of the executed node. One without nodes is ONNX
    Runtime's own, and its time is of none of them.
    """
    return _Attribution(model, executed).kernels(times)


def node_times(model: onnx.ModelProto, profiler: ModelProfiler) -> dict[str, float]:
    """Milliseconds by node of the main graph: those of a kernel at the product that it computes, or at its last node.

    Raises ModelError if ONNX Runtime cannot load or run the model.
    """
    nodes = list(model.graph.node)
    weights = [(int(node.op_type in PRODUCTS), place) for place, node in enumerate(nodes)]
    spent: dict[str, float] = defaultdict(float)
    for kernel in kernels(model.graph, *profiler.executed(model)):
        main = main_node(kernel, weights)
        if main is not None:
            spent[nodes[main].name] += kernel.ms
    return dict(spent)


class _Attribution:
    def __init__(self, model: onnx.GraphProto, executed: onnx.GraphProto) -> None:
        self._nodes, self._executed = list(model.node), list(executed.node)
        self._makers = {name: place for place, node in enumerate(self._nodes) for name in node.output if name}
        self._readers: dict[str, list[int]] = defaultdict(list)
        for place, node in enumerate(self._nodes):
            for name in node.input:
                self._readers[name].append(place)
        self._owner: dict[int, int] = {}
        self._claim()
        self._claim_followers()
        self._claim_leaders()

    def kernels(self, times: Mapping[str, float]) -> list[Kernel]:
        found: dict[int, list[int]] = defaultdict(list)
        for place, owner in sorted(self._owner.items()):
            found[owner].append(place)
        spent = [times.get(node.name, 0.0) for node in self._executed]
        for index, host in self._layout_hosts().items():
            spent[host] += spent[index]
            spent[index] = 0.0
        return [
            Kernel(node.op_type, ms, tuple(found[index]))
            for index, (node, ms) in enumerate(zip(self._executed, spent, strict=True))
            if ms or found[index]
        ]

    def _claim(self) -> None:
        """What leads to the result of each kernel, up to the first product and what kernels before it gave."""
        for index, node in enumerate(self._executed):
            if node.op_type in CHANGES_LAYOUT:
                continue
            for place in self._ends(node):
                self._claim_back(place, index)

    def _ends(self, node: onnx.NodeProto) -> list[int]:
        """The model's nodes whose results the kernel is known to give."""
        place = marked_place(node.name)
        if place is not None and node.op_type in PREPARES and self._nodes[place].op_type in PRODUCTS:
            place = None
        named = [self._makers[name] for name in node.output if name in self._makers]
        if named or place is not None:
            return [*named, *([] if place is None else [place])]
        if node.name.endswith(_BLOCKED):
            tensor = node.name.removesuffix(_BLOCKED)
            known = max((name for name in self._makers if tensor.startswith(name)), key=len, default=None)
            return [] if known is None else [self._makers[known]]
        return []

    def _claim_back(self, place: int, index: int) -> None:
        kept, pending = set(self._executed[index].input), [place]
        while pending:
            place = pending.pop()
            if place in self._owner:
                continue
            self._owner[place] = index
            if self._nodes[place].op_type not in PRODUCTS:
                inner = [
                    name for name in self._nodes[place].input if name in self._makers and name not in kept
                ]
                pending += [self._makers[name] for name in inner if self._is_only_reader(name, place, index)]

    def _is_only_reader(self, name: str, place: int, index: int) -> bool:
        """Whether all that read a tensor are of the same kernel."""
        return all(reader == place or self._owner.get(reader) == index for reader in self._readers[name])

    def _claim_followers(self) -> None:
        """What no kernel gives by name belongs to the one before: a sum and a ReLU behind a convolution."""
        for place, node in enumerate(self._nodes):
            if place in self._owner or node.op_type in PRODUCTS:
                continue
            before = [self._owner.get(self._makers.get(name, -1)) for name in node.input]
            known = [index for index in before if index is not None]
            if known:
                self._owner[place] = max(known)

    def _claim_leaders(self) -> None:
        """A product that no kernel is known to give belongs to what reads it, such as attention."""
        for place in reversed(range(len(self._nodes))):
            if place not in self._owner and self._nodes[place].op_type in PRODUCTS:
                after = [
                    self._owner[reader]
                    for name in self._nodes[place].output
                    for reader in self._readers[name]
                    if reader in self._owner
                ]
                if after:
                    self._owner[place] = min(after)

    def _layout_hosts(self) -> dict[int, int]:
        """A change of layout -> the kernel before it, or else behind it."""
        makers = {name: index for index, node in enumerate(self._executed) for name in node.output}
        found = {}
        for index, node in enumerate(self._executed):
            if node.op_type not in CHANGES_LAYOUT:
                continue
            before = makers.get(node.input[0])
            after = [
                other
                for other, reader in enumerate(self._executed)
                if reader.op_type not in CHANGES_LAYOUT and set(reader.input) & set(node.output)
            ]
            hosts = [before] if before is not None and before not in found else after[:1]
            if hosts and hosts[0] is not None:
                found[index] = hosts[0]
        return found


def main_node(kernel: Kernel, weights: Sequence[tuple[int, int]]) -> int | None:
    """The node of a kernel that stands for it: the one with the most MACs, or else the largest result; `weights` are both
    by the node's place.
    """
    return max(kernel.nodes, key=lambda place: (weights[place], place), default=None)
