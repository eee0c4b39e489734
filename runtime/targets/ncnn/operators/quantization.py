"""QuantizeLinear and DequantizeLinear of activations. Layers of INT8 quantize what they read themselves
(quantized.py); what reads a pair beside them computes in float, with what was there before the pair.
"""

from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.registry import operator
from onnx_lathe.runtime.targets.ncnn.weights import quantized_input


@operator("QuantizeLinear")
def quantize(node: Node, net: Network) -> None:
    source = net.blob(node.inputs[0])
    net.name_output(node, source.name, source.axes)


@operator("DequantizeLinear")
def dequantize(node: Node, net: Network) -> None:
    found = quantized_input(net, node.outputs[0])
    if found is None:
        raise Unsupported(
            "ncnn quantizes to INT8 with one scale and zero-point 0, by a pair of the same scale"
        )
    source = net.blob(found[0])
    net.name_output(node, source.name, source.axes)
