"""Which layers and tensors of a final model stand for those of the original."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import onnx
from onnx import inliner

from onnx_lathe import metadata
from onnx_lathe.layout import LAYOUT
from onnx_lathe.optimizer.inspect import LayerRow, layer_table
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.layers import UNFOLDED, is_constant, is_layer
from onnx_lathe.passes.graph.model import import_model, node_metadata

FOLLOWED = 5
"""So many nodes behind a layer are looked at for a tensor that both models have."""
_SHAPELESS = ("Dropout", "Identity")
_FOLLOWED = {
    *(
        "Add",
        "BatchNormalization",
        "Clip",
        "Div",
        "Elu",
        "Erf",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
    ),
    *("Mul", "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Sub", "Tanh"),
    *_SHAPELESS,
    *LAYOUT,
}
"""Operators through which the output of a layer is still that layer's: its bias, its activation."""


@dataclass
class Network:
    """A model as its report sees it: functions inlined, every node named as passes name it."""

    model: onnx.ModelProto
    graph: Graph
    rows: Sequence[LayerRow]
    nodes: Mapping[str, Node]

    @cached_property
    def layers(self) -> set[str]:
        return {row.node for row in self.rows}

    def made_by(self, name: str) -> str:
        """The pass that made the node; empty for a node of the original."""
        return node_metadata(self.nodes[name]).get(metadata.PASS, "") if name in self.nodes else ""

    def behind(self, name: str) -> list[str]:
        """Tensors that are the layer's output, from its own on: behind its bias, its normalization, its activation."""
        return [node.outputs[0].name for node in self._chain(name)]

    def nodes_behind(self, name: str) -> list[str]:
        """The layer and the nodes that write `behind`, but for those that have a row of their own."""
        return [name, *(node.name for node in self._chain(name) if node.name not in self.layers)]

    def _chain(self, name: str) -> list[Node]:
        node: Node | None = self.nodes.get(name)
        found: list[Node] = []
        while node is not None and node.outputs and len(found) <= FOLLOWED:
            tensor = node.outputs[0]
            found.append(node)
            node = _following(tensor)
        return found


def network(model: onnx.ModelProto) -> Network:
    """Raises what `layer_table` raises. The model's nodes get the names that reports give them."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    graph = import_model(model)
    for proto, node in zip(model.graph.node, graph.nodes, strict=True):
        proto.name = node.name
    return Network(model, graph, layer_table(model).rows, {node.name: node for node in graph.nodes})


def _following(tensor: Tensor) -> Node | None:
    """What goes on with a layer's output: its one reader, or of x * f(x), as SiLU is exported, the product."""
    readers = list({id(one): one for one in tensor.outputs}.values())
    if len(readers) == 2:
        product = next((one for one in readers if one.op == "Mul" and not one.domain), None)
        gate = next((one for one in readers if one is not product), None)
        if product is None or gate is None or not _goes_on(gate) or len(product.inputs) != 2:
            return None
        meets = {id(one) for one in product.inputs} == {id(tensor), id(gate.outputs[0])}
        return product if meets and len(gate.outputs[0].outputs) == 1 else None
    return readers[0] if len(readers) == 1 and _goes_on(readers[0]) else None


def _goes_on(node: Node) -> bool:
    """Whether it computes on one activation alone, element by element."""
    moving = [one for one in node.inputs if not one.is_empty() and not is_constant(one, UNFOLDED)]
    return node.op in _FOLLOWED and not node.domain and not is_layer(node) and len(moving) == 1


@dataclass
class Pair:
    """A layer of the original and what is left of it: one layer, several where it was split, none where it is gone;
    or a layer of the final model alone.
    """

    name: str
    before: LayerRow | None
    after: list[LayerRow] = field(default_factory=list)


def paired(before: Network, after: Network) -> list[Pair]:
    """Every layer of either model, in the order of the original.

    A pass keeps the name of the node that it changes, and names those that it splits a layer into NAME_... .
    """
    found = {row.node: Pair(row.node, row) for row in before.rows}
    for row in after.rows:
        name = row.node
        if name not in found and after.made_by(name):
            known = [other for other in found if name.startswith(f"{other}_") and found[other].before]
            name = max(known, key=len, default=name)
        found.setdefault(name, Pair(name, None)).after.append(row)
    return list(found.values())


@dataclass(frozen=True)
class Match:
    """Where one layer can be compared: `tensor` is there in both models, or `reason` says why none is."""

    layer: str
    tensor: str = ""
    reason: str = ""
    behind: str = ""
    """The operator whose output it is, if not the layer's own."""


def matches(pairs: Sequence[Pair], before: Network, after: Network, moved: Mapping[str, str]) -> list[Match]:
    """One for each layer of the original. `moved`: layer -> why its tensors differ on purpose."""
    computed = {tensor.name for node in after.graph.nodes for tensor in node.outputs}
    found = []
    for pair in pairs:
        if pair.before is None:
            continue
        if pair.before.place:
            found.append(Match(pair.name, reason=f"it is in the {pair.before.place}"))
        elif pair.name in moved:
            found.append(Match(pair.name, reason=moved[pair.name]))
        else:
            chain = before.behind(pair.name)
            shared = next((tensor for tensor in chain if tensor in computed), "")
            where = "" if not shared or shared == chain[0] else _maker(before, shared)
            lacking = "" if shared else "no tensor of its name is left in the final model"
            found.append(Match(pair.name, shared, lacking, where))
    return found


def _maker(side: Network, tensor: str) -> str:
    for node in side.graph.nodes:
        if any(output.name == tensor for output in node.outputs):
            return str(node.op)
    return ""


def stored(node: Node) -> bool:
    """Whether it decodes a weight alone: no activation passes through it."""
    return bool(node.outputs) and (
        is_constant(node.outputs[0], UNFOLDED) or isinstance(node.outputs[0], Constant)
    )
