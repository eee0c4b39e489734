"""Operators of one or two operands that compute each value by itself."""

from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node
from onnx_lathe.runtime.targets.litert.registry import operator


@operator("Add", fuses=True, integers=("INT8", "INT16"))
def add(node: Node, net: Network) -> None:
    inputs = [net.operand(node, 0), net.operand(node, 1)]
    net.put(node, "ADD", inputs, "AddOptions", fusedActivationFunction=node.activation, potScaleInt16=False)


@operator("Relu", integers=("INT8", "INT16"))
def relu(node: Node, net: Network) -> None:
    net.put(node, "RELU", [net.operand(node, 0)])
