"""How much a network computes."""

import math

from onnx_lathe.runtime.targets.litert.network import Network

WEIGHTS = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "TRANSPOSE_CONV": 1, "FULLY_CONNECTED": 1}
"""Operator -> position of its weight."""


def multiplications(net: Network) -> float:
    """Of a call at the sizes that it is built for, by layers with weights and products of matrices."""
    total = 0.0
    for one in net.operators:
        result = math.prod(net.tensors[one.outputs[0]].shape)
        if one.code in WEIGHTS:
            shape = net.tensors[one.inputs[1]].shape
            each = math.prod(shape[1:-1]) if one.code == "DEPTHWISE_CONV_2D" else math.prod(shape[1:])
            total += result * each
        elif one.code == "BATCH_MATMUL":
            total += result * net.tensors[one.inputs[0]].shape[-1]
    return total
