"""For a target without integers between layers: what read a dequantized activation reads what was quantized."""

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.layers import is_constant
from onnx_lathe.passes.graph.model import free_name, node_metadata
from onnx_lathe.passes.graph.quantization.pairs import is_dequantized

CLIP_INPUTS_OPSET = 11
"""The first opset whose Clip has its bounds as inputs."""


def drop_pairs(graph: Graph, layers: set[int], report: PassReport) -> None:
    """Readers of a dequantized activation read what was quantized; but not the layers.

    What others quantized is cut off at the ends of its range all the same: exporters leave a ReLU out in front of a
    quantizer that does its work.
    """
    made: dict[int, Tensor] = {}
    for node in list(graph.nodes):
        for index, tensor in enumerate(node.inputs):
            if id(node) in layers and index == 0:
                continue
            if not is_dequantized(tensor) or is_constant(tensor):
                continue
            codes = tensor.inputs[0].inputs[0]
            quantize = codes.inputs[0] if codes.inputs else None
            if quantize is None or quantize.op != "QuantizeLinear" or quantize.domain:
                continue
            source = quantize.inputs[0]
            if metadata.RANGE not in node_metadata(quantize):
                limits = _limits(quantize, tensor.inputs[0])
                if limits is None:
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = clipped(graph, source, limits)
                source = made[id(tensor)]
            node.inputs[index] = source
            report.edit(node.name, f"reads {quantize.inputs[0].name} in float")
    graph.toposort()


def _limits(quantize: Node, dequantize: Node) -> tuple[float, float] | None:
    """The smallest and the largest value that a pair lets through; None if its scale or zero-point is not one number."""
    scales = [node.inputs[1] for node in (quantize, dequantize)]
    zero = quantize.inputs[2] if len(quantize.inputs) > 2 and not quantize.inputs[2].is_empty() else None
    if any(not isinstance(one, Constant) or one.values.size != 1 for one in scales):
        return None
    if zero is not None and (not isinstance(zero, Constant) or zero.values.size != 1):
        return None
    kind = quantize.attrs.get("output_dtype", 0) or onnx.TensorProto.UINT8
    dtype = zero.values.dtype if zero is not None else onnx.helper.tensor_dtype_to_np_dtype(kind)
    if dtype.kind not in "iu":  # 4 bits and 8-bit floats: the pair stays
        return None
    ends, offset = np.iinfo(dtype), 0 if zero is None else int(zero.values.reshape(()))
    step = float(scales[1].values.reshape(()))
    return (ends.min - offset) * step, (ends.max - offset) * step


def clipped(graph: Graph, source: Tensor, limits: tuple[float, float]) -> Tensor:
    """A Clip behind the tensor."""
    name = free_name(graph, f"{source.name}_clipped")
    result = Variable(name, np.float32, source.shape)
    inputs, attributes = [source], {}
    if graph.opset < CLIP_INPUTS_OPSET:
        attributes = {"min": limits[0], "max": limits[1]}
    else:
        inputs += [
            Constant(free_name(graph, f"{name}_{end}"), np.array(value, np.float32))
            for end, value in zip(("min", "max"), limits, strict=True)
        ]
    graph.nodes.append(Node("Clip", free_name(graph, f"{name}_Clip"), attributes, inputs, [result]))
    return result
