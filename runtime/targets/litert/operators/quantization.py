"""QuantizeLinear and DequantizeLinear that stand by themselves: between float and integers, and from one scale to another."""

from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator

UNKNOWN = "its scale is computed at run time or of blocks, or its integers are of a type that LiteRT has not"


@operator("QuantizeLinear")
def quantize(node: Node, net: Network) -> None:
    if node.outputs[0] not in net.stored.activations:
        raise Unsupported(UNKNOWN)
    source = net.stored.decoded.get(node.inputs[0], node.inputs[0])
    net.put(node, "QUANTIZE", [net.read(source)])


@operator("DequantizeLinear")
def dequantize(node: Node, net: Network) -> None:
    raise Unsupported(UNKNOWN)
