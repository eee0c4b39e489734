"""Pairs of QuantizeLinear and DequantizeLinear that no INT8 layer takes in: the rounding itself, in float.

    x -> Q -> DQ        x / scale -> round to even -> clip -> * scale

A pair in front of an INT8 layer is part of that layer (quantized.py); what is written here is then read by nobody,
and left out in the end.
"""

import numpy as np

from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.registry import operator
from onnx_lathe.runtime.targets.ncnn.weights import zero_point

MUL, ROUND = 2, 18


@operator("QuantizeLinear")
def quantize(node: Node, net: Network) -> None:
    readers = [other for other in net.nodes.values() if node.outputs[0] in other.input]
    if not readers or any(reader.op_type != "DequantizeLinear" for reader in readers):
        raise Unsupported("what it quantizes is read as integers")
    source = net.blob(node.inputs[0])
    net.name_output(node, source.name, source.axes)


@operator("DequantizeLinear")
def dequantize(node: Node, net: Network) -> None:
    before = net.nodes.get(node.inputs[0])
    if before is None or before.op_type != "QuantizeLinear":
        raise Unsupported("it reads integers that are computed at run time")
    scale, zero = net.constant(node.inputs[1], "scale"), zero_point(net, before)
    first = net.constant(before.input[1], "scale")
    if (
        zero is None
        or scale.size != 1
        or zero.size != 1
        or float(first.reshape(())) != float(scale.reshape(()))
    ):
        raise Unsupported("the scale of the activation is not one number")
    step, offset = float(scale.reshape(())), int(zero.reshape(()))
    limits = np.iinfo(zero.dtype)
    source = net.blob(node.inputs[0])
    name = node.outputs[0]
    blob = net.inner("BinaryOp", f"{name}_scaled", [source.name], {0: MUL, 1: 1, 2: 1.0 / step})
    blob = net.inner("UnaryOp", f"{name}_rounded", [blob], {0: ROUND})
    bounds = {0: float(limits.min - offset), 1: float(limits.max - offset)}
    blob = net.inner("Clip", f"{name}_clipped", [blob], bounds)
    net.put(node, "BinaryOp", [blob], {0: MUL, 1: 1, 2: step}, axes=source.axes)
