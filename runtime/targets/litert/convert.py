"""A lowered model -> LiteRT's operators: walks the graph, and lists what LiteRT cannot compute."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import onnx

from onnx_lathe.runtime.targets.core.facts import Shape, gather
from onnx_lathe.runtime.targets.core.node import overlooked
from onnx_lathe.runtime.targets.litert.grouping import group
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.patterns import joined
from onnx_lathe.runtime.targets.litert.quantization import broken_rules
from onnx_lathe.runtime.targets.litert.registry import find

BODIES = ("If", "Loop", "Scan")


@dataclass(frozen=True)
class Conversion:
    """`refused`: (node, operator, reason) of what LiteRT cannot compute; then the network is not whole. `inputs` and
    `outputs`: the model's names, and their places in the network's tensors.
    """

    network: Network
    inputs: Sequence[tuple[str, int]]
    outputs: Sequence[tuple[str, int]]
    refused: Sequence[tuple[str, str, str]]


def convert(
    model: onnx.ModelProto,
    sizes: Mapping[str, Shape],
    others: Mapping[str, Shape],
    half: bool = False,
    fold_stem: bool = False,
) -> Conversion:
    """The network of a model whose inputs have these `sizes`; a size that differs in `others` stays open. `fold_stem`: see stem.py.

    Raises TargetError where ONNX Runtime cannot run the model at these sizes.
    """
    facts = gather(model, sizes, others)
    grouped = group(model, facts, find)
    net = Network(facts, grouped.stored, half, fold_stem)
    refused: list[tuple[str, str, str]] = []
    for name in sizes:
        _try(refused, name, "Input", partial(net.input, name))
    read = _read(model.graph)
    handed_out = frozenset(value.name for value in model.graph.output)
    for node, proto in joined(list(zip(grouped.nodes, grouped.protos, strict=True)), facts, handed_out):
        wanted = [name for name in node.outputs if name and name in read]
        if not facts.free.issuperset(wanted):
            _write(net, refused, node, proto, read)
        net.later |= dict.fromkeys(
            facts.free.intersection(wanted), partial(_write, net, refused, node, proto, read)
        )
    outputs: list[tuple[str, int]] = []
    for value in [] if refused else model.graph.output:
        _try(refused, value.name, "Output", partial(_hand_out, net, value.name, outputs))
    if not refused:
        refused += broken_rules(net.operators, net.tensors)
    inputs = [(name, net.places[name]) for name in sizes if name in net.places]
    return Conversion(net, inputs, _distinct(net, inputs, outputs), refused)


def _read(graph: onnx.GraphProto) -> set[str]:
    """All that is read, by bodies too."""
    found = {value.name for value in graph.output}
    for node in graph.node:
        found.update(node.input)
        for item in node.attribute:
            if item.type == onnx.AttributeProto.GRAPH:
                found |= _read(item.g)
    return found


def _write(
    net: Network, refused: list[tuple[str, str, str]], node: Node, proto: onnx.NodeProto, read: set[str]
) -> None:
    known = len(refused)
    net.standing_for(node.covers)
    entry = find(proto.domain, node.op)
    if node.op == "DequantizeLinear" and node.outputs[0] in net.stored.decoded:
        return  # written when a node in float reads it
    if node.op in BODIES and entry is None:
        refused.append((node.name, node.op, "LiteRT is written without branches and loops here"))
    elif entry is None:
        domain = f" of domain {proto.domain}" if proto.domain else ""
        refused.append((node.name, node.op, f"LiteRT, or Lathe for it, has no {node.op}{domain}"))
    else:
        kept = Node(**{**vars(node), "outputs": tuple(name if name in read else "" for name in node.outputs)})
        _try(refused, node.name, node.op, lambda: entry.build(kept, net))
        if len(refused) == known and (name := overlooked(node, proto.domain)):
            reason = f"Lathe does not know what its attribute '{name}' means for LiteRT"
            refused.append((node.name, node.op, reason))
    for name in node.outputs if len(refused) > known else ():
        if name and name not in net.places:
            _pretend(net, name)


def _try(refused: list[tuple[str, str, str]], name: str, op: str, act: Callable[[], object]) -> None:
    try:
        act()
    except Unsupported as reason:
        refused.append((name, op, str(reason)))


def _pretend(net: Network, tensor: str) -> None:
    """A tensor for what a refused node would write, so that the nodes behind it are looked at too."""
    try:
        net.input(tensor)
    except Unsupported:
        net.places[tensor] = 0


def _hand_out(net: Network, tensor: str, outputs: list[tuple[str, int]]) -> None:
    net.standing_for(())
    outputs.append((tensor, net.read(tensor)))


def _distinct(
    net: Network, inputs: Sequence[tuple[str, int]], outputs: Sequence[tuple[str, int]]
) -> list[tuple[str, int]]:
    """Outputs that are a tensor each, and neither an input nor a constant, which some runtimes do not hand out."""
    taken = {place for _, place in inputs}
    found = []
    for name, place in outputs:
        one = net.tensors[place]
        if place in taken or one.values is not None:
            sizes = one.signature or one.shape
            place = net.reshaped(place, name, sizes)
        taken.add(place)
        found.append((name, place))
    return found
