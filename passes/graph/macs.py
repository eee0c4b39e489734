"""Multiply-accumulates (MACs) of layers, from shapes."""

import math
from collections.abc import Mapping, Sequence

import onnx

import lathe
from passes.contract import runtime_inputs, skeleton
from passes.graph import Graph, Node
from passes.graph.layers import Weight, output_axis, weights
from passes.graph.model import node_metadata

Shape = tuple[int, ...]


def sized_shapes(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """Tensor name -> shape, where the inputs have the sizes given, or else a batch of 1. A size that stays unknown counts as 1.

    Empty if shapes do not fit each other.
    """
    light = skeleton(model)
    fed = {value.name for value in runtime_inputs(model)}
    for value in [value for value in light.graph.input if value.name in fed]:
        dims = value.type.tensor_type.shape.dim
        known = inputs.get(value.name, [dim.dim_value or (1 if place == 0 else 0) for place, dim in enumerate(dims)])
        for dim, size in zip(dims, known, strict=True):
            if size:
                dim.dim_value = size
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        return {}
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    return {
        value.name: tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


def positions(node: Node, shapes: Mapping[str, Shape]) -> int:
    """How many times the layer uses its whole weight: per output position, but per input position for ConvTranspose.

    1 for a shape that is not known.
    """
    shape = shapes.get((node.inputs[0] if node.op == "ConvTranspose" else node.outputs[0]).name, ())
    return math.prod((shape[:1] + shape[2:]) if node.op in ("Conv", "ConvTranspose") else shape[:-1])


def network_macs(graph: Graph, shapes: Mapping[str, Shape], splitter: str) -> tuple[int, int]:
    """(MACs of all layers with constant weights, what they would be had the pass `splitter` split no layer in two).

    Two layers that it made, one behind the other, stand for one with the product of their weights.
    """
    sizes = {id(node): _shape(weight, shapes) for weight in weights(graph, lambda node, reason: None) for node in weight.nodes}
    now = whole = 0
    first_halves: dict[str, Node] = {}
    for node in graph.nodes:
        if id(node) not in sizes:
            continue
        size, macs = math.prod(sizes[id(node)]), positions(node, shapes) * math.prod(sizes[id(node)])
        now += macs
        first = first_halves.pop(node.inputs[0].name, None)
        if first is not None:
            shape = sizes[id(first)]
            rank = shape[output_axis(first, len(shape))]
            times = positions(first if first.op == "ConvTranspose" else node, shapes)
            whole += times * (math.prod(shape) // rank) * (size // rank) - positions(first, shapes) * math.prod(shape)
        else:
            whole += macs
            if node_metadata(node).get(lathe.PASS) == splitter:
                first_halves[node.outputs[0].name] = node
    return now, whole


def _shape(weight: Weight, shapes: Mapping[str, Shape]) -> Shape:
    return tuple(weight.tensor.shape) if weight.is_initializer else shapes.get(weight.name, ())
