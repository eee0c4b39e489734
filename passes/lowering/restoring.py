"""Back to float, for a target, of what int8 quantized for another target of the same request."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from onnx_lathe import metadata
from onnx_lathe.layout import LAYOUT
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_shape, constant_value, is_constant
from onnx_lathe.passes.graph.model import free_name, node_metadata
from onnx_lathe.passes.graph.quantization.pairs import is_dequantized
from onnx_lathe.passes.graph.quantization.placement import (
    Rows,
    float_reason,
    quantized_layers,
    residual_operands,
)
from onnx_lathe.passes.graph.rewire import captured_names, is_output
from onnx_lathe.placement import Placement


def restore_weight(graph: Graph, node: Node) -> None:
    """Gives the layer the float values of its quantized weight, in the type that it computes in: float16 behind the
    pass of that name.
    """
    tensor = node.inputs[WEIGHT_INPUT]
    scale = tensor.inputs[0].inputs[1]
    values = np.asarray(constant_value(tensor, graph.opset), scale.dtype)
    node.inputs[WEIGHT_INPUT] = Constant(free_name(graph, f"{tensor.name}_float"), values)


def restore_canonical(
    graph: Graph, placement: Placement, report: PassReport, floats: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Takes out what the canonical form has not: layers that the placement leaves in float, those of `floats`, by
    name with the reason, and the pairs of int8 that serve no layer.

    A pair serves a layer that reads it, if need be behind a Reshape and the like, and the other operand of
    a residual addition.
    """
    rows = Rows(graph)
    for node in quantized_layers(graph):
        if not is_constant(node.inputs[WEIGHT_INPUT]):
            continue
        shape = constant_shape(node.inputs[WEIGHT_INPUT], graph.opset)
        if reason := floats.get(node.name) or float_reason(node, shape, placement, rows):
            restore_weight(graph, node)
            report.skip(node.name, reason)
            report.edit(node.name, "its weight is float again")
    layers = quantized_layers(graph)
    known = {id(node) for node in layers}
    taken: dict[tuple[int, int], Tensor] = {}
    for node in graph.nodes:
        for index, tensor in enumerate(node.inputs):
            if is_ours(tensor) and not (id(node) in known and index == 0) and not _serves(node, known):
                taken[id(node), index] = tensor
                node.inputs[index] = tensor.inputs[0].inputs[0].inputs[0].inputs[0]
    seen = captured_names(graph)
    unread = {
        id(tensor): tensor
        for tensor in taken.values()
        if not (tensor.outputs or is_output(graph, tensor) or tensor.name in seen)
    }
    # only then is a convolution's result read by one addition
    sources = {key: _detach(graph, tensor) for key, tensor in unread.items()}
    for node, index in residual_operands(graph, layers) if taken else ():
        if (id(node), index) in taken:
            tensor = taken.pop((id(node), index))
            if id(tensor) in sources:
                _attach(graph, tensor, sources.pop(id(tensor)))
            node.inputs[index] = tensor
    for node in graph.nodes:
        for index in range(len(node.inputs)):
            if (id(node), index) in taken:
                report.edit(node.name, f"reads {node.inputs[index].name} in float again")


def _detach(graph: Graph, tensor: Tensor) -> Tensor:
    """Takes the pair that writes `tensor` out of the graph. Returns what it read."""
    dequantize = tensor.inputs[0]
    graph.nodes.remove(dequantize)
    quantize = dequantize.inputs[0].inputs[0]
    source: Tensor = quantize.inputs[0]
    quantize.inputs.pop(0)
    graph.nodes.remove(quantize)
    return source


def _attach(graph: Graph, tensor: Tensor, source: Tensor) -> None:
    dequantize = tensor.inputs[0]
    quantize = dequantize.inputs[0].inputs[0]
    quantize.inputs.insert(0, source)
    graph.nodes += [quantize, dequantize]


def is_ours(tensor: Tensor) -> bool:
    """Whether int8 put the pair there that the tensor comes from."""
    if not is_dequantized(tensor) or not tensor.inputs[0].inputs[0].inputs:
        return False
    quantize = tensor.inputs[0].inputs[0].inputs[0]
    return metadata.RANGE in node_metadata(quantize) and len(quantize.outputs[0].outputs) == 1


def _serves(node: Node, layers: set[int]) -> bool:
    """Whether the node is between a pair and a layer: it moves values and computes nothing."""
    if node.op not in LAYOUT or node.domain:
        return False
    return any(id(reader) in layers or _serves(reader, layers) for reader in node.outputs[0].outputs)
