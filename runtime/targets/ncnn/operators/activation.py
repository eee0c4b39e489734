"""Operators of one operand that change each value by itself."""

from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.node import Node
from onnx_lathe.runtime.targets.ncnn.registry import operator


@operator("Relu")
def relu(node: Node, net: Network) -> None:
    source = net.blob(node.inputs[0])
    net.put(node, "ReLU", [source.name], axes=source.axes)
