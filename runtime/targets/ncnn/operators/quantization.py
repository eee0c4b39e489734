"""Pairs of QuantizeLinear and DequantizeLinear that no INT8 layer takes in: the rounding itself, in float.

    x -> Q -> DQ        x / scale -> round to even -> clip -> * scale

A pair in front of an INT8 layer is part of that layer (quantized.py); what is written here is then read by nobody,
and left out in the end.
"""

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.registry import operator
from onnx_lathe.runtime.targets.ncnn.weights import zero_point

MUL, ROUND = 2, 18
LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


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
        or not scale.size == zero.size == first.size == 1
        or first.reshape(()) != scale.reshape(())
    ):
        raise Unsupported("the scale of the activation is not one number")
    if zero.dtype.name not in LIMITS:
        raise Unsupported(f"it reads {zero.dtype.name}; of integers, those of 8 and 16 bits are written")
    own = net.constant(node.inputs[2], "zero-point") if node.given(2) else np.zeros(1, zero.dtype)
    if own.size != 1 or own.reshape(()) != zero.reshape(()):
        raise Unsupported("its zero-point is not that of QuantizeLinear")
    step, offset = float(scale.reshape(())), int(zero.reshape(()))
    low, high = LIMITS[zero.dtype.name]
    source = net.blob(node.inputs[0])
    name = node.outputs[0]
    blob = net.inner("BinaryOp", f"{name}_scaled", [source.name], {0: MUL, 1: 1, 2: 1.0 / step})
    blob = net.inner("UnaryOp", f"{name}_rounded", [blob], {0: ROUND})
    bounds = {0: float(low - offset), 1: float(high - offset)}
    blob = net.inner("Clip", f"{name}_clipped", [blob], bounds)
    net.put(node, "BinaryOp", [blob], {0: MUL, 1: 1, 2: step}, axes=source.axes)
