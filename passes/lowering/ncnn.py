"""Canonical form -> what is written for ncnn.

    x -> Q -> DQ -> Conv, Gemm or MatMul with DQ(w)     stays: a layer that ncnn computes in INT8
    x -> Q -> DQ -> Reshape -> Conv ...                 x -> Reshape -> Q -> DQ -> Conv ...
    any other pair of int8's                            gone: ncnn has no INT8 between other layers
    any other pair of another tool's                    Clip at the ends of its range, where a ReLU may be part of it
    a layer quantized in another way                    a float weight, and no pair
    codebook weight -> Q -> DQ                          INT8 initializer -> DQ
    float16 or bfloat16                                 float32; the writer stores in half what half holds
    If(condition that is known)                         the body that runs, see passes/graph/branches.py

Why: ncnn's INT8 layers quantize what they read themselves, by one scale around zero, and write floats; what they
hand on in INT8 the writer finds out. Its files hold no other integers.
Source: ncnn, docs/how-to-use-and-FAQ/quantized-int8-inference.md, and src/layer/convolution.cpp.
"""

from dataclasses import dataclass

import numpy as np

from onnx_lathe.layout import LAYOUT
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.float16.lifting import lift
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.branches import take_branches
from onnx_lathe.passes.graph.constants import constant_to_initializer
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_value, is_constant, is_layer, output_axis
from onnx_lathe.passes.graph.model import free_name
from onnx_lathe.passes.graph.quantization.pairs import is_dequantized, state_zero_points
from onnx_lathe.passes.graph.quantization.placement import quantized_layers
from onnx_lathe.passes.graph.rewire import captured_names, is_output, sweep
from onnx_lathe.passes.lowering.dropping import drop_pairs
from onnx_lathe.passes.lowering.restoring import restore_canonical, restore_weight

IN_GROUPS = "ncnn's INT8 convolutions of groups of several channels compute other numbers"
"""Seen on x86 with ncnn 1.0.20261020: of 8 channels a group and more they read what nobody wrote, and it has one
scale for all outputs of a group.
"""


class Lowering(Pass):
    name = "lower-ncnn"
    takes_half = True

    @dataclass(frozen=True)
    class Config:
        branches: dict[str, bool] = option({}, "condition of an If -> what it always is")

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        if self.config.branches:
            take_branches(graph, self.config.branches, report)
        if lift(graph) is not None:
            report.edit(graph.name or "the model", "computes in float32, as its weights are in ncnn")
        state_zero_points(graph, report)
        captured = captured_names(graph)
        for node in graph.nodes:
            is_seen = node.outputs and (is_output(graph, node.outputs[0]) or node.outputs[0].name in captured)
            if node.op == "Constant" and not is_seen:
                constant_to_initializer(node)
        for node in list(graph.nodes):
            if is_layer(node) and is_dequantized(node.inputs[WEIGHT_INPUT]):
                _approach(graph, node, report)
        restore_canonical(graph, context.placement, report)
        layers = []
        for node in quantized_layers(graph):
            if not is_constant(node.inputs[WEIGHT_INPUT]):
                continue
            if reason := _float_reason(graph, node):
                restore_weight(graph, node)
                report.edit(node.name, "has a float weight")
                report.skip(node.name, f"{reason}: it runs in float")
                continue
            _store_codes(graph, node, report)
            layers.append(node)
        drop_pairs(graph, {id(node) for node in layers}, report)
        sweep(graph)
        return report


def _approach(graph: Graph, layer: Node, report: PassReport) -> None:
    """Moves the layer's pair behind what stands between the two and changes no value."""
    moved: list[Node] = []
    tensor = layer.inputs[0]
    while tensor.inputs and tensor.inputs[0].op in LAYOUT and not tensor.inputs[0].domain:
        moved.append(tensor.inputs[0])
        tensor = moved[-1].inputs[0]
    if not moved or not is_dequantized(tensor) or not _is_pair(graph, tensor):
        return
    dequantize = tensor.inputs[0]
    quantize = dequantize.inputs[0].inputs[0]
    source = quantize.inputs[0]
    for node in reversed(moved):
        result = Variable(
            free_name(graph, f"{node.outputs[0].name}_float"), np.float32, node.outputs[0].shape
        )
        inputs = [source, *node.inputs[1:]]
        graph.nodes.append(
            Node(node.op, free_name(graph, f"{node.name}_float"), dict(node.attrs), inputs, [result])
        )
        source = result
    codes = Variable(free_name(graph, f"{source.name}_int8"), np.int8, source.shape)
    result = Variable(free_name(graph, f"{source.name}_dequantized"), np.float32, source.shape)
    graph.nodes += [
        Node(
            "QuantizeLinear",
            free_name(graph, f"{source.name}_QuantizeLinear"),
            dict(quantize.attrs),
            [source, *quantize.inputs[1:]],
            [codes],
        ),
        Node(
            "DequantizeLinear",
            free_name(graph, f"{source.name}_DequantizeLinear"),
            dict(dequantize.attrs),
            [codes, *dequantize.inputs[1:]],
            [result],
        ),
    ]
    layer.inputs[0] = result
    report.edit(layer.name, f"its pair stands behind {moved[0].op}")
    graph.toposort()


def _float_reason(graph: Graph, layer: Node) -> str | None:
    """Why ncnn does not compute this quantized layer in INT8."""
    shape = constant_value(layer.inputs[WEIGHT_INPUT], graph.opset).shape
    if not is_dequantized(layer.inputs[0]) or not _is_pair(graph, layer.inputs[0]):
        return "its input is not quantized to INT8 with one scale and zero-point 0, as ncnn has it"
    if layer.op == "Conv" and len(shape) not in (3, 4):
        return "ncnn's INT8 convolutions have one or two dimensions"
    if layer.op == "Conv" and layer.attrs.get("group", 1) not in (1, shape[0]):
        return IN_GROUPS
    if layer.op == "Conv" and layer.attrs.get("group", 1) > 1 and shape[1] != 1:
        return IN_GROUPS
    decoder = layer.inputs[WEIGHT_INPUT].inputs[0]
    scale = constant_value(decoder.inputs[1], graph.opset)
    if decoder.op != "DequantizeLinear" or decoder.attrs.get("block_size", 0):
        return "its weight is quantized in blocks"
    axis = decoder.attrs.get("axis", 1) % max(len(shape), 1)
    if scale.size != 1 and axis != output_axis(layer, len(shape)):
        return "its weight has a scale for each input channel"
    if len(decoder.inputs) > 2 and np.any(constant_value(decoder.inputs[2], graph.opset)):
        return "the zero-point of its weight is not 0"
    codes = constant_value(decoder.inputs[0], graph.opset)
    if int(codes.min(initial=0)) < -127 or codes.dtype != np.int8:
        return "its weight has levels beyond -127 to 127, ncnn's range"
    return None


def _is_pair(graph: Graph, tensor: Tensor) -> bool:
    """Whether the dequantized tensor was quantized to INT8 just before, by one scale around zero."""
    dequantize = tensor.inputs[0]
    codes = dequantize.inputs[0]
    quantize = codes.inputs[0] if codes.inputs else None
    if quantize is None or quantize.op != "QuantizeLinear" or quantize.domain or is_output(graph, codes):
        return False
    for node in (quantize, dequantize):
        if (
            len(node.inputs) < 3
            or not isinstance(node.inputs[1], Constant)
            or not isinstance(node.inputs[2], Constant)
        ):
            return False
        if (
            node.inputs[1].values.size != 1
            or node.inputs[2].values.dtype != np.int8
            or np.any(node.inputs[2].values)
        ):
            return False
    return bool(quantize.inputs[1].values.reshape(()) == dequantize.inputs[1].values.reshape(()))


def _store_codes(graph: Graph, layer: Node, report: PassReport) -> None:
    """Gives the DequantizeLinear of a weight an INT8 initializer, whatever computed the levels before."""
    decoder = layer.inputs[WEIGHT_INPUT].inputs[0]
    if not isinstance(decoder.inputs[0], Constant):
        codes = constant_value(decoder.inputs[0], graph.opset)
        decoder.inputs[0] = Constant(free_name(graph, f"{layer.inputs[WEIGHT_INPUT].name}_codes"), codes)
        report.edit(layer.name, "stores the levels of its weight")
