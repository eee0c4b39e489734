"""Operators that change a tensor's shape, or put tensors together and take them apart."""

from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.registry import operator


@operator("Identity", "Dropout", "Cast")
def identity(node: Node, net: Network) -> None:
    if node.op == "Cast" and (net.is_integer(node.inputs[0]) or net.is_integer(node.outputs[0])):
        raise Unsupported("it makes integers of floats, or floats of integers")
    source = net.blob(node.inputs[0])
    net.name_output(node, source.name, source.axes)


@operator("Reshape", "Flatten")
def reshape(node: Node, net: Network) -> None:
    """A blob has its values in the tensor's order: only the sizes of its dimensions are other ones."""
    source, target = node.inputs[0], node.outputs[0]
    blob, axes = net.blob(source), net.usual(target)
    sizes, before = net.sizes(target), net.sizes(source)
    wanted = [sizes[axis] for axis in axes] or [1]
    if wanted == [before[axis] for axis in blob.axes]:
        net.name_output(node, blob.name, axes)
        return
    if wanted.count(None) > 1:
        raise Unsupported("two or more sizes of its result depend on the size of the input")
    net.name_output(
        node, net.reshaped(blob.name, target, [-1 if size is None else size for size in wanted]), axes
    )
