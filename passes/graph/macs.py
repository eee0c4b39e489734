"""Multiply-accumulates (MACs) of layers, from shapes."""

import math
from collections.abc import Mapping, Sequence

import onnx

from onnx_lathe import metadata
from onnx_lathe.macs import OpenShape
from onnx_lathe.passes.graph import Graph, Node
from onnx_lathe.passes.graph.layers import Weight, output_axis, weights
from onnx_lathe.passes.graph.model import node_metadata
from onnx_lathe.passes.graph.skeleton import runtime_inputs, skeleton

Shape = tuple[int, ...]


def open_shapes(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> dict[str, OpenShape]:
    """Tensor name -> shape by shape inference, where the inputs have the sizes given, or else a batch of 1
    if they leave the batch open.

    Empty if shapes do not fit each other.
    """
    light = skeleton(model)
    fed = {value.name for value in runtime_inputs(model)}
    for value in [value for value in light.graph.input if value.name in fed]:
        dims = value.type.tensor_type.shape.dim
        for place, (dim, size) in enumerate(zip(dims, inputs.get(value.name, [0] * len(dims)), strict=True)):
            if size or (place == 0 and not dim.dim_value):
                dim.dim_value = size or 1
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return {}
    values = [*light.graph.input, *light.graph.value_info, *light.graph.output]
    found: dict[str, OpenShape] = {
        value.name: tuple(dim.dim_value or dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
    return found | {tensor.name: tuple(tensor.dims) for tensor in light.graph.initializer}


def sized_shapes(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """What `open_shapes` gives, with 1 for every size that stays unknown."""
    return {
        name: tuple(size if isinstance(size, int) else 1 for size in shape)
        for name, shape in open_shapes(model, inputs).items()
    }


def repeats(node: Node, shapes: Mapping[str, OpenShape]) -> OpenShape | None:
    """The sizes whose product is how often the layer uses its whole weight: per output position, but per
    input position for ConvTranspose.

    None for a shape that is not known.
    """
    shape = shapes.get((node.inputs[0] if node.op == "ConvTranspose" else node.outputs[0]).name)
    if shape is None:
        return None
    return (*shape[:1], *shape[2:]) if node.op in ("Conv", "ConvTranspose") else shape[:-1]


def positions(node: Node, shapes: Mapping[str, Shape]) -> int:
    """The product of `repeats`; 1 for a shape that is not known."""
    return math.prod(size for size in repeats(node, shapes) or () if isinstance(size, int))


def network_macs(graph: Graph, shapes: Mapping[str, Shape], splitter: str, parts: int = 2) -> tuple[int, int]:
    """(MACs of all layers with constant weights, what they would be had the pass `splitter` split no layer).

    So many layers that it made, one behind the other, stand for one with the product of their weights.
    """
    sizes = {
        id(node): _shape(weight, shapes)
        for weight in weights(graph, lambda node, reason: None, filled=True)
        for node in weight.nodes
    }
    now = whole = 0
    chains: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if id(node) not in sizes:
            continue
        macs = positions(node, shapes) * math.prod(sizes[id(node)])
        now += macs
        whole += macs
        if node_metadata(node).get(metadata.PASS) != splitter:
            continue
        chain = [*chains.pop(node.inputs[0].name, []), node]
        if len(chain) < parts:
            chains[node.outputs[0].name] = chain
            continue
        whole -= sum(positions(one, shapes) * math.prod(sizes[id(one)]) for one in chain)
        whole += _product_macs(chain, [sizes[id(one)] for one in chain], shapes)
    return now, whole


def _product_macs(chain: Sequence[Node], sizes: Sequence[Shape], shapes: Mapping[str, Shape]) -> int:
    """MACs of one layer in place of a chain: from the first one's inputs, by the product of all kernels."""
    first, last = chain[0], chain[-1]
    outputs = sizes[-1][output_axis(last, len(sizes[-1]))]
    inputs = math.prod(sizes[0][:2]) // sizes[0][output_axis(first, len(sizes[0]))]
    kernels = math.prod(math.prod(size[2:]) for size in sizes)
    return positions(first if first.op == "ConvTranspose" else last, shapes) * outputs * inputs * kernels


def _shape(weight: Weight, shapes: Mapping[str, Shape]) -> Shape:
    return tuple(weight.tensor.shape) if weight.is_initializer else shapes.get(weight.name, ())
