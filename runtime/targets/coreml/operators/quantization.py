"""QuantizeLinear and DequantizeLinear between layers; those of weights are constants (weights.py)."""

from typing import Any

import numpy as np
import onnx

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.network import Network
from onnx_lathe.runtime.targets.coreml.registry import operator

TYPES = (np.dtype(np.int8), np.dtype(np.uint8))


@operator("QuantizeLinear")
def quantize(node: Node, net: Network) -> None:
    scale, zero, axis = _parameters(node, net, node.inputs[0])
    node.integer("output_dtype")
    net.put(
        node,
        "quantize",
        input=net.variable(node.inputs[0]),
        scale=scale,
        zero_point=zero,
        axis=axis,
        output_dtype=str(zero.dtype),
    )


@operator("DequantizeLinear")
def dequantize(node: Node, net: Network) -> None:
    scale, zero, axis = _parameters(node, net, node.inputs[0])
    net.put(node, "dequantize", input=net.variable(node.inputs[0]), scale=scale, zero_point=zero, axis=axis)


def _parameters(node: Node, net: Network, tensor: str) -> tuple[np.ndarray, np.ndarray, int | None]:
    """(scale, zero-point, axis; None for one scale)."""
    if not net.form.quantizes:
        raise Unsupported("its activations are integers, which Core ML has from iOS 17 on: deployment=iOS17")
    if node.integer("block_size"):
        raise Unsupported("its activations are quantized in blocks")
    scale = net.converted("scale", net.constant(node.inputs[1], "scale"))
    if not np.all(scale):
        raise Unsupported("its scale is 0 in float16: build with precision=float32")
    zero: Any = None
    if node.given(2):
        zero = net.constant(node.inputs[2], "zero-point")
    else:
        element = node.integer("output_dtype") or net.element(node.outputs[0]) or onnx.TensorProto.UINT8
        if node.op == "DequantizeLinear":
            element = net.element(tensor)
        zero = np.zeros(scale.shape, onnx.helper.tensor_dtype_to_np_dtype(element))
    if zero.dtype not in TYPES:
        raise Unsupported(f"its activations are {zero.dtype}; Core ML has int8 and uint8")
    if scale.size == 1:
        return scale.reshape(()), zero.reshape(()), None
    return scale.reshape(-1), zero.reshape(-1), node.integer("axis", 1) % net.rank(tensor)
