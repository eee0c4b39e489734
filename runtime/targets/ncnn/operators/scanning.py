"""CumSum: CumulativeSum, on a blob that is turned around where the sums run backwards."""

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.moving import along, leave
from onnx_lathe.runtime.targets.ncnn.network import Loose, Network
from onnx_lathe.runtime.targets.ncnn.registry import operator


@operator("CumSum")
def cumulative_sum(node: Node, net: Network) -> None:
    source, target = node.inputs[0], node.outputs[0]
    if node.integer("exclusive"):
        raise Unsupported("its sums leave out the value at their own place")
    if net.is_integer(source):
        raise Unsupported("it sums integers")
    axis = int(net.constant(node.inputs[1], "axis").reshape(-1)[0]) % net.rank(source)
    blob, place = along(net, source, axis)
    name = blob.name
    if node.integer("reverse"):
        name = net.inner("Flip", target, [name], {0: [place]})
    name = net.inner("CumulativeSum", target, [name], {0: place})
    if node.integer("reverse"):
        name = net.inner("Flip", target, [name], {0: [place]})
    leave(node, net, Loose(name, blob.dims))
