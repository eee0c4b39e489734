"""The order in which ONNX Runtime adds the products of a layer's weight on x86-64, and whether in pairs.

A convolution goes through the places of its kernel, and at each through the input channels of the group;
Gemm and MatMul go along the rows. Depthwise convolutions with one output channel per input channel add in
32 bits at once.
Seen in ONNX Runtime 1.32: tests/passes/test_lowering_sums.py compares outputs for every kind.
"""

import numpy as np

from onnx_lathe.passes.graph import Node
from onnx_lathe.passes.graph.layers import output_axis
from onnx_lathe.passes.graph.quantization.placement import is_depthwise


def adds_in_pairs(layer: Node, values: np.ndarray) -> bool:
    if layer.op == "Conv":
        return not (is_depthwise(layer, values.shape) and layer.attrs["group"] == len(values))
    return values.ndim == 2


def as_added(layer: Node, values: np.ndarray) -> np.ndarray:
    """The layer's weight as rows of products, [O, K]."""
    if layer.op == "Conv":
        return np.moveaxis(values, 1, -1).reshape(len(values), -1)
    return values if output_axis(layer, 2) == 0 else values.T


def as_stored(layer: Node, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Back from `as_added`, to the weight's own shape."""
    if layer.op == "Conv":
        return np.ascontiguousarray(np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1))
    return np.ascontiguousarray(rows if output_axis(layer, 2) == 0 else rows.T)
