"""Operators that leave the values and their order as they are: a blob has them with other dimensions, or the same."""

import onnx

from onnx_lathe.runtime.targets.ncnn.moving import held, leave
from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.registry import operator


@operator("Identity", "Dropout", "Cast", "CastLike")
def identity(node: Node, net: Network) -> None:
    source, target = node.inputs[0], node.outputs[0]
    if node.op.startswith("Cast") and net.is_integer(source) != net.is_integer(target):
        raise Unsupported("it makes integers of floats, or floats of integers")
    if node.op.startswith("Cast") and is_narrower(net, source, target):
        raise Unsupported("it makes smaller integers, which can change them")
    if source in net.loose:
        net.loose[target] = net.loose[source]
    else:
        blob = net.blob(source)
        net.name_output(node, blob.name, blob.axes)


def is_narrower(net: Network, source: str, target: str) -> bool:
    """Whether a cast between integers is to another type than those of 32 bits and more, which are one in ncnn."""
    wide = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
    types = net.facts.types
    return net.is_integer(source) and types.get(target) != types.get(source) and types.get(target) not in wide


@operator("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(node: Node, net: Network) -> None:
    leave(node, net, held(net, node.inputs[0]))
