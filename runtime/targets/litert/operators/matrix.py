"""Gemm and MatMul: FULLY_CONNECTED where the second factor is a constant matrix, else BATCH_MATMUL."""

import numpy as np

from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator

STORED = ("INT8", "INT16")


@operator("Gemm", fuses=True, integers=STORED, data=(0, 1))
def gemm(node: Node, net: Network) -> None:
    """Weight in the file: [outputs, inputs]."""
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    scaled = alpha != 1.0 or (beta != 1.0 and node.given(2))
    if node.on_integers and (scaled or node.integer("transA")):
        raise Unsupported(
            "its alpha or beta is not 1, or its first factor is transposed, which LiteRT has in float alone"
        )
    source = net.operand(node, 0)
    if node.integer("transA"):
        source = net.transposed(source, node.inputs[0], (1, 0))
    values = net.value(node.inputs[1])
    bias = net.value(node.inputs[2]) if node.given(2) else np.zeros(1, np.float32)
    plain = bias is not None and (bias.ndim < 2 or bias.shape[0] == 1)
    if values is None or not plain or scaled:
        if node.on_integers:
            raise Unsupported("its second factor is computed, or its third is no row")
        _in_steps(node, net, source, alpha, beta)
        return
    turned = bool(node.integer("transB"))
    weight = net.weight(node, 1, lambda values: values if turned else values.T)
    places = [source, weight, net.bias(node, 2, source, weight, net.tensors[weight].shape[0])]
    net.put(node, "FULLY_CONNECTED", places, "FullyConnectedOptions", fusedActivationFunction=node.activation)


def _in_steps(node: Node, net: Network, source: int, alpha: float, beta: float) -> None:
    """alpha * (A x B) + beta * C, with an operator for each."""
    shape, name = net.shape(node.outputs[0]), node.outputs[0]
    last = node.given(2)
    turned = bool(node.integer("transB"))
    product = [source, net.read(node.inputs[1])]
    found = net.inner("BATCH_MATMUL", f"{name}_product", product, shape, "BatchMatMulOptions", adjY=turned)
    if alpha != 1.0:
        factor = net.floats(np.array(alpha), f"{node.name}_alpha")
        found = net.inner("MUL", f"{name}_scaled", [found, factor], shape, "MulOptions")
    third = net.read(node.inputs[2]) if last else net.floats(np.zeros(1), f"{node.name}_zero")
    if last and beta != 1.0:
        factor = net.floats(np.array(beta), f"{node.name}_beta")
        third = net.inner("MUL", f"{name}_third", [third, factor], net.tensors[third].shape, "MulOptions")
    net.put(
        node,
        "ADD",
        [found, third],
        "AddOptions",
        fusedActivationFunction=node.activation,
        potScaleInt16=False,
    )


@operator("MatMul", fuses=True, integers=STORED)
def matmul(node: Node, net: Network) -> None:
    ranks = [net.rank(name) for name in node.inputs]
    if (
        ranks[1] == 2
        and ranks[0] > 1
        and net.value(node.inputs[1]) is not None
        and net.value(node.inputs[0]) is None
    ):
        _fully_connected(node, net, ranks[0])
        return
    if node.activation != "NONE" or max(ranks) > 5:
        _with_activation(node, net, ranks)
        return
    first, second = _matrices(node, net, ranks)
    if min(ranks) > 1:
        net.put(node, "BATCH_MATMUL", [first, second], "BatchMatMulOptions")
        return
    shape = _full_shape(net, first, second)
    whole = net.inner_result(
        node, "BATCH_MATMUL", f"{node.outputs[0]}_matrix", [first, second], shape, "BatchMatMulOptions"
    )
    net.put_reshaped(node, whole, net.sizes(node.outputs[0]))


def _fully_connected(node: Node, net: Network, rank: int) -> None:
    source, weight = net.operand(node, 0), net.weight(node, 1, np.transpose)
    places = [source, weight, net.bias(node, 2, source, weight, net.tensors[weight].shape[0])]
    fields = {"fusedActivationFunction": node.activation, "keepNumDims": rank > 2}
    net.put(node, "FULLY_CONNECTED", places, "FullyConnectedOptions", **fields)


def _with_activation(node: Node, net: Network, ranks: list[int]) -> None:
    if max(ranks) > 5:
        raise Unsupported(f"its factors have {max(ranks)} dimensions; LiteRT's BATCH_MATMUL has at most 5")
    first, second = _matrices(node, net, ranks)
    shape = _full_shape(net, first, second)
    found = net.inner_result(
        node, "BATCH_MATMUL", f"{node.outputs[0]}_product", [first, second], shape, "BatchMatMulOptions"
    )
    if min(ranks) == 1:
        found = net.reshaped(found, node.outputs[0], net.sizes(node.outputs[0]))
    net.put(node, node.activation, [found])


def _matrices(node: Node, net: Network, ranks: list[int]) -> tuple[int, int]:
    """Both factors with at least two dimensions."""
    first, second = net.operand(node, 0), net.operand(node, 1)
    if ranks[0] == 1:
        first = net.reshaped(first, node.inputs[0], (1, *net.sizes(node.inputs[0])))
    if ranks[1] == 1:
        second = net.reshaped(second, node.inputs[1], (*net.sizes(node.inputs[1]), 1))
    return first, second


def _full_shape(net: Network, first: int, second: int) -> tuple[int, ...]:
    shapes = net.tensors[first].shape, net.tensors[second].shape
    leading = np.broadcast_shapes(shapes[0][:-2], shapes[1][:-2])
    return (*leading, shapes[0][-2], shapes[1][-1])
