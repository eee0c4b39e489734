"""Gemm and MatMul: `linear` where the second operand is a weight, whose rows are outputs then, else `matmul`."""

from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.network import Network
from onnx_lathe.runtime.targets.coreml.operators.elementwise import operand
from onnx_lathe.runtime.targets.coreml.registry import operator

MOST_OF_LINEAR = 3
"""Dimensions."""


@operator("Gemm")
def gemm(node: Node, net: Network) -> None:
    """alpha * A * B + beta * C."""
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    flipped = node.integer("transB") == 1
    source = net.variable(node.inputs[0])
    if node.integer("transA"):
        source = net.op("transpose", f"{node.name}_a", x=source, perm=[1, 0])
    bias = _vector(node, net, beta) if alpha == 1.0 else None
    if net.is_free(node.inputs[1]):
        result = net.op(
            "linear", f"{node.name}_linear", x=source, weight=_rows(node, net, flipped), bias=bias
        )
    else:
        y = net.variable(node.inputs[1])
        result = net.op("matmul", f"{node.name}_product", x=source, y=y, transpose_y=flipped)
        if bias is not None:
            result = net.op("add", f"{node.name}_sum", x=result, y=bias)
    if alpha != 1.0:
        result = net.op("mul", f"{node.name}_alpha", x=result, y=net.number(alpha))
    if node.given(2) and bias is None:
        added = operand(node, net, 2)
        if beta != 1.0:
            added = net.op("mul", f"{node.name}_beta", x=added, y=net.number(beta))
        result = net.op("add", f"{node.name}_sum", x=result, y=added)
    net.leave(node, result)


def _rows(node: Node, net: Network, flipped: bool) -> Any:
    """[outputs, inputs]."""
    if flipped:
        return net.weight(node.inputs[1])
    return net.weight(node.inputs[1], move=np.transpose, way="rows")


def _vector(node: Node, net: Network, beta: float) -> Any:
    """A bias for each output, if it is one that `linear` takes; else None."""
    values = net.value(node.inputs[2]) if node.given(2) else None
    outputs = net.sizes(node.outputs[0])[-1]
    if values is None or beta != 1.0 or outputs is None or values.size not in (1, outputs):
        return None
    if values.size > 1 and values.shape[-1] != outputs:
        return None
    return net.stored(node.inputs[2], np.broadcast_to(values.reshape(-1), (outputs,)).copy())


@operator("MatMul")
def matmul(node: Node, net: Network) -> None:
    first, second = node.inputs[:2]
    ranks = net.rank(first), net.rank(second)
    if net.is_free(second) and ranks[1] == 2 and 1 <= ranks[0] <= MOST_OF_LINEAR and not net.is_free(first):
        net.put(
            node, "linear", x=net.variable(first), weight=net.weight(second, move=np.transpose, way="rows")
        )
        return
    if min(ranks) == 0:
        raise Unsupported("an operand has no dimensions")
    net.put(node, "matmul", x=_operand(node, net, 0), y=_operand(node, net, 1))


def _operand(node: Node, net: Network, place: int) -> Any:
    return operand(node, net, place)
