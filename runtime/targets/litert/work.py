"""How much a network computes."""

import math

from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.tensors import Operator

WEIGHTS = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "TRANSPOSE_CONV": 1, "FULLY_CONNECTED": 1}
"""Operator -> position of its weight."""


def multiplications(net: Network) -> float:
    """Of a call at the sizes that it is built for, by layers with weights and products of matrices."""
    total = 0.0
    for one in net.operators:
        result = math.prod(net.tensors[one.outputs[0]].shape)
        total += result * _terms(net, one)
    return total


def longest_sum(net: Network) -> int:
    """Of how many products the longest sum of a layer with weights, or of a product of matrices, is."""
    return max((_terms(net, one) for one in net.operators), default=0)


def _terms(net: Network, one: Operator) -> int:
    """Products that each value of the result is the sum of; 0 of other operators."""
    if one.code in WEIGHTS:
        shape = net.tensors[one.inputs[1]].shape
        return math.prod(shape[1:-1]) if one.code == "DEPTHWISE_CONV_2D" else math.prod(shape[1:])
    return net.tensors[one.inputs[0]].shape[-1] if one.code == "BATCH_MATMUL" else 0
