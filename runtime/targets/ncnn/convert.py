"""A lowered model -> ncnn's layers: walks the graph, and lists what ncnn cannot compute."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import onnx

from onnx_lathe.kernels import PROFILES
from onnx_lathe.runtime.targets.core.facts import BODIES, Facts, Shape, behind_defaults, gather
from onnx_lathe.runtime.targets.core.further import varying
from onnx_lathe.runtime.targets.core.node import Node, Unsupported, node_name, overlooked, view
from onnx_lathe.runtime.targets.ncnn.algorithms import Sizes, follow, summed_in_float32, wanted
from onnx_lathe.runtime.targets.ncnn.dialect import Layer
from onnx_lathe.runtime.targets.ncnn.finish import finish
from onnx_lathe.runtime.targets.ncnn.integers import held_as_floats, is_integer
from onnx_lathe.runtime.targets.ncnn.network import Axes, Network
from onnx_lathe.runtime.targets.ncnn.registry import Builder, find


@dataclass(frozen=True)
class Port:
    """An input or output of the written network. `axes`: of the model's tensor of `shape`, the blob's dimensions;
    `declared`: the shape as the model says it, the batch too, with None where it is open; `element`: ONNX's type;
    `floats`: the blob holds float32, of whatever type that is, and not integers of 32 bits; `least` and `greatest`: of
    an input whose open sizes are bounded, the shapes that bound them.
    """

    tensor: str
    blob: str
    shape: Sequence[int | None]
    axes: Axes
    element: int
    declared: Sequence[int | None]

    @property
    def is_batched(self) -> bool:
        """Whether the first axis is a batch, of which the network takes one sample after another."""
        return bool(self.declared) and self.declared[0] is None and self.shape[0] == 1

    floats: bool = True
    least: Sequence[int] = ()
    greatest: Sequence[int] = ()


@dataclass(frozen=True)
class Conversion:
    """`refused`: (node, operator, reason) of what ncnn cannot compute; then there are no layers. `unfollowed`: (node,
    reason) of algorithms that its convolutions cannot be made to take. `results`: Conv node -> the sizes that it
    writes.
    """

    layers: Sequence[Layer]
    inputs: Sequence[Port]
    outputs: Sequence[Port]
    refused: Sequence[tuple[str, str, str]]
    unfollowed: Sequence[tuple[str, str]] = ()
    results: Mapping[str, Sizes] = field(default_factory=dict)


def convert(
    model: onnx.ModelProto,
    sizes: Mapping[str, Shape],
    others: Mapping[str, Shape],
    profile: str | None = None,
) -> Conversion:
    """The layers of a model whose inputs have these `sizes`; a size that differs in `others` stays open. With a
    `profile` (kernels.py), convolutions take the algorithms that its kernels can of those chosen in the model.

    Raises TargetError where ONNX Runtime cannot run the model at these sizes.
    """
    facts = gather(model, sizes, others)
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1)
    net = _network(model, facts)
    refused = _bfloat16(model.graph)
    for name in sizes:
        _try(refused, Node(name, "Input", opset, (), (name,), {}, {}), partial(net.input, name))
    behind = behind_defaults(model.graph)
    read = _read(model.graph) | {one.name for one in model.graph.output}
    for index, proto in enumerate(model.graph.node):
        if any(name and name in read and name not in facts.free for name in proto.output):
            node = view(proto, index, opset)
            kept = tuple(name if name in read else "" for name in node.outputs)
            _write(net, refused, proto, replace(node, outputs=kept), behind)
    if refused:
        return Conversion((), (), (), refused)
    outputs = [value.name for value in model.graph.output]
    for name in outputs:
        _try(
            refused,
            Node(name, "Output", opset, (name,), (), {}, {}),
            partial(_handed_out, net, name),
        )
    if refused:
        return Conversion((), (), (), refused)
    last = {name: net.form(name, net.usual(name)) for name in outputs}
    pointing = {net.blobs[name].name for name in sizes if net.is_integer(name) and name not in net.counted}
    layers, blobs = finish(net.layers, {name: last[name].name for name in outputs}, pointing)
    results = {
        node_name(one, index): net.sizes(one.output[0])
        for index, one in enumerate(model.graph.node)
        if one.op_type == "Conv" and one.output[0] in net.blobs
    }
    unfollowed: Sequence[tuple[str, str]] = ()
    if profile is not None:
        chosen = wanted(model.graph.node)
        wide = summed_in_float32(model.graph.node)
        unfollowed = follow(layers, chosen, results, PROFILES[profile], profile, wide)
    return Conversion(
        layers,
        [
            _port(net, value, net.blobs[value.name].name, net.blobs[value.name].axes)
            for value in model.graph.input
            if value.name in sizes
        ],
        [_port(net, value, blobs[value.name], last[value.name].axes) for value in model.graph.output],
        (),
        unfollowed,
        results,
    )


def _bfloat16(graph: onnx.GraphProto) -> list[tuple[str, str, str]]:
    return [
        (value.name, kind, "it is bfloat16, which ncnn neither takes nor gives: make it float32")
        for kind, values in (("Input", graph.input), ("Output", graph.output))
        for value in values
        if value.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16
    ]


def _network(model: onnx.ModelProto, facts: Facts) -> Network:
    made = {name: node for node in model.graph.node for name in node.output if name}
    counted = held_as_floats(model.graph, facts.types, facts.free)
    return Network(facts, made, counted, varying(model, facts))


def _read(graph: onnx.GraphProto) -> set[str]:
    """Also what bodies read."""
    found: set[str] = set()
    for node in graph.node:
        found.update(node.input)
        for item in node.attribute:
            if item.type == onnx.AttributeProto.GRAPH:
                found |= _read(item.g) | {value.name for value in item.g.output}
    return found


def _write(
    net: Network,
    refused: list[tuple[str, str, str]],
    proto: onnx.NodeProto,
    node: Node,
    behind: Collection[str],
) -> None:
    """`behind`: tensors that inputs with a default value go into."""
    known = len(refused)
    builder = find("" if proto.domain == "ai.onnx" else proto.domain, proto.op_type)
    if proto.op_type in BODIES and not proto.domain:
        reason = "ncnn runs no branches and no loops"
        if proto.op_type == "If" and proto.input[0] in behind:
            reason = (
                "an input with a default value goes into its condition, and ncnn runs no branches; "
                "--drop-optional-inputs makes a constant of the input"
            )
        elif proto.op_type == "If" and net.is_free(proto.input[0]):
            reason = "which of its branches runs depends on the size of the input"
        refused.append((node.name, node.op, reason))
    elif builder is None:
        domain = f" of domain {proto.domain}" if proto.domain else ""
        refused.append((node.name, node.op, f"ncnn, or Lathe for it, has no {node.op}{domain}"))
    else:
        before = len(net.layers)
        _try(refused, node, lambda: _built(net, node, builder))
        if (name := overlooked(node, proto.domain)) and len(refused) == known:
            refused.append(
                (node.name, node.op, f"Lathe does not know what its attribute '{name}' means for ncnn")
            )
        for layer in net.layers[before:]:
            layer.nodes = (node.name,)
    for name in node.outputs if len(refused) > known else ():
        if name and name not in net.blobs and name not in net.loose:
            _pretend(net, name)


def _built(net: Network, node: Node, builder: Builder) -> None:
    net.refuse_varying(node.inputs)
    builder(node, net)


def _handed_out(net: Network, tensor: str) -> None:
    net.refuse_varying([tensor])
    net.form(tensor, net.usual(tensor))


def _try(refused: list[tuple[str, str, str]], node: Node, act: Callable[[], None]) -> None:
    try:
        act()
    except Unsupported as reason:
        refused.append((node.name, node.op, str(reason)))


def _pretend(net: Network, tensor: str) -> None:
    """A blob for what a refused node would write, so that the nodes behind it are looked at too."""
    try:
        axes = net.usual(tensor)
    except Unsupported:
        axes = ()
    net.name_output(Node("", "", 0, (), (tensor,), {}, {}), "refused", axes)


def _port(net: Network, value: onnx.ValueInfoProto, blob: str, axes: Axes) -> Port:
    tensor = value.type.tensor_type
    declared = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    floats = not is_integer(tensor.elem_type) or value.name in net.counted or net.is_free(value.name)
    return Port(value.name, blob, net.sizes(value.name), axes, tensor.elem_type, declared, floats)
