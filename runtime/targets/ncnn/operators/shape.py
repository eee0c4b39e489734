"""Operators that leave the values and their order as they are: a blob has them with other dimensions, or the same."""

import onnx

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.arithmetic import ABS, ADD, CEIL, FLOOR, MIN, scalar, unary
from onnx_lathe.runtime.targets.ncnn.moving import held, leave, refuse_computed_shape
from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.registry import operator

WIDE = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)


@operator("Identity", "Dropout")
def identity(node: Node, net: Network) -> None:
    source, target = node.inputs[0], node.outputs[0]
    if source in net.loose:
        net.loose[target] = net.loose[source]
    else:
        blob = net.blob(source)
        net.name_output(node, blob.name, blob.axes)


@operator("Cast", "CastLike")
def cast(node: Node, net: Network) -> None:
    """Integers that are floats in ncnn, and bools, become floats and integers as they are."""
    source, target = node.inputs[0], node.outputs[0]
    if net.is_integer(source) and source not in net.counted:
        if not net.is_integer(target):
            raise Unsupported(
                f"it makes {'bools' if net.is_bool(target) else 'floats'} of integers that also point"
            )
    elif net.is_bool(source):
        pass
    elif net.is_bool(target):
        blob = net.blob(source)
        size = unary(net, f"{node.name}_size", ABS, blob.name)
        net.put(node, "Threshold", [size], {0: 0.0}, axes=blob.axes)
        return
    elif net.is_integer(target) and not net.is_integer(source):
        _whole(node, net)
        return
    if is_narrower(net, source, target):
        raise Unsupported("it makes smaller integers, which can change them")
    identity(node, net)


def _whole(node: Node, net: Network) -> None:
    """floor(max(x, 0)) + ceil(min(x, 0)): without what is behind the point."""
    source, target = node.inputs[0], node.outputs[0]
    if net.facts.types.get(target) not in WIDE:
        raise Unsupported("it makes small integers of floats")
    blob, name = net.blob(source), node.name
    above = unary(net, f"{name}_floor", FLOOR, net.inner("ReLU", f"{name}_above", [blob.name]))
    below = unary(net, f"{name}_ceil", CEIL, scalar(net, f"{name}_below", MIN, blob.name, 0.0))
    net.put(node, "BinaryOp", [above, below], {0: ADD}, axes=blob.axes)


def is_narrower(net: Network, source: str, target: str) -> bool:
    """Whether a cast between integers is to another type than those of 32 bits and more, which are one in ncnn."""
    types = net.facts.types
    both = net.is_integer(source) and net.is_integer(target)
    return both and types.get(target) != types.get(source) and types.get(target) not in WIDE


@operator("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(node: Node, net: Network) -> None:
    refuse_computed_shape(node, net)
    node.attributes.items()  # what they say, the shape of the result says
    leave(node, net, held(net, node.inputs[0]))
