"""Concat."""

from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node
from onnx_lathe.runtime.targets.litert.registry import operator


@operator("Concat", integers=("INT8", "INT16"))
def concat(node: Node, net: Network) -> None:
    rank = net.rank(node.outputs[0])
    places = [
        net.operand(node, position)
        for position, name in enumerate(node.inputs)
        if 0 not in net.shape(name) or len(node.inputs) == 1
    ]
    axis = node.integer("axis") % rank
    net.put(node, "CONCATENATION", places, "ConcatenationOptions", axis=axis)
