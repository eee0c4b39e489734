"""Pooling."""

from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.node import Node
from onnx_lathe.runtime.targets.ncnn.registry import operator
from onnx_lathe.runtime.targets.ncnn.windows import window


@operator("MaxPool")
def max_pool(node: Node, net: Network) -> None:
    found = window(node, net, node.integers("kernel_shape") or [])
    axes = tuple(range(1, len(found.kernel) + 2))
    params = {
        0: 0,
        1: found.kernel[1],
        11: found.kernel[0],
        2: found.strides[1],
        12: found.strides[0],
        3: found.begin[1],
        13: found.begin[0],
        14: found.end[1],
        15: found.end[0],
        5: 1,
    }
    net.put(node, "Pooling", [net.form(node.inputs[0], axes).name], params, (), axes)
