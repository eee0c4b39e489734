"""Operators that change the order of values: Transpose, DepthToSpace and SpaceToDepth."""

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.expressions import ONE, pairs, product
from onnx_lathe.runtime.targets.ncnn.moving import held, leave, moves, order_type, permuted, reshape
from onnx_lathe.runtime.targets.ncnn.network import Loose, Network
from onnx_lathe.runtime.targets.ncnn.registry import operator

IMAGE = (1, 2, 3)


@operator("Transpose")
def transpose(node: Node, net: Network) -> None:
    """A permutation that moves dimensions of 1 alone is no layer."""
    source = node.inputs[0]
    sizes = pairs(net, source)
    perm = node.integers("perm") or list(reversed(range(len(sizes))))
    long = [axis for axis in range(len(sizes)) if sizes[axis] != ONE]
    order = [axis for axis in perm if axis in long]
    if order == long:
        leave(node, net, held(net, source))
    elif source in net.loose:
        leave(node, net, _many(net, source, long, order, node.outputs[0]))
    else:
        blob = net.blob(source)
        moved = sorted(blob.axes, key=perm.index)
        params = {0: order_type([blob.axes.index(axis) for axis in moved])}
        axes = tuple(perm.index(axis) for axis in moved)
        net.put(node, "Permute", [blob.name], params, axes=axes)


def _many(net: Network, source: str, long: list[int], order: list[int], label: str) -> Loose:
    """More dimensions than ncnn has: several permutations, each of neighbours that move together."""
    sizes = pairs(net, source)
    current = [sizes[axis] for axis in long]
    blob = held(net, source)
    for lengths, places in moves(tuple(long.index(axis) for axis in order)):
        groups, start = [], 0
        for length in lengths:
            groups.append(current[start : start + length])
            start += length
        blob = permuted(net, reshape(net, blob, [product(group) for group in groups], label), places, label)
        current = [size for place in places for size in groups[place]]
    return blob


@operator("DepthToSpace")
def depth_to_space(node: Node, net: Network) -> None:
    """PixelShuffle's mode 0 has the channels of one result next to each other (CRD), mode 1 those of one place (DCR)."""
    _one_image(node, net)
    params = {0: node.integer("blocksize"), 1: int(node.text("mode", "DCR") == "DCR")}
    net.put(node, "PixelShuffle", [net.form(node.inputs[0], IMAGE).name], params, axes=IMAGE)


@operator("SpaceToDepth")
def space_to_depth(node: Node, net: Network) -> None:
    _one_image(node, net)
    params = {0: node.integer("blocksize"), 1: 1}
    net.put(node, "Reorg", [net.form(node.inputs[0], IMAGE).name], params, axes=IMAGE)


def _one_image(node: Node, net: Network) -> None:
    if net.sizes(node.inputs[0])[0] != 1:
        raise Unsupported("it takes several samples at once, which are no batch of the model's input")
