"""Gemm."""

from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator


@operator("Gemm", fuses=True, integers=("INT8", "INT16"), data=(0, 1))
def gemm(node: Node, net: Network) -> None:
    """Weight in the file: [outputs, inputs]."""
    if node.number("alpha", 1.0) != 1.0 or node.number("beta", 1.0) != 1.0 or node.integer("transA"):
        raise Unsupported("its alpha or beta is not 1, or its first factor is transposed")
    transposed = bool(node.integer("transB"))
    weight = net.weight(node, 1, lambda values: values if transposed else values.T)
    source = net.operand(node, 0)
    bias = net.bias(node, 2, source, weight, net.tensors[weight].shape[0])
    net.put(
        node,
        "FULLY_CONNECTED",
        [source, weight, bias],
        "FullyConnectedOptions",
        fusedActivationFunction=node.activation,
    )
