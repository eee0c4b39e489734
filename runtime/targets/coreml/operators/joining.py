"""Concat, Split, Tile and Expand."""

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.dimensions import is_open, repeats, target
from onnx_lathe.runtime.targets.coreml.knowledge import Pair
from onnx_lathe.runtime.targets.coreml.network import Network
from onnx_lathe.runtime.targets.coreml.registry import operator


@operator("Concat")
def concat(node: Node, net: Network) -> None:
    """Without what has no values."""
    names = [name for name in node.inputs if 0 not in net.shape(name)]
    parts = [net.variable(name) for name in names]
    if len(parts) == 1:
        net.leave(node, parts[0])
        return
    net.put(node, "concat", values=parts, axis=node.integer("axis"))


@operator("Split")
def split(node: Node, net: Network) -> None:
    axis = node.integer("axis") % net.rank(node.inputs[0])
    source, whole = net.variable(node.inputs[0]), net.pairs(node.inputs[0])[axis]
    node.integers("split")
    read = [(place, name) for place, name in enumerate(node.outputs) if name]
    if len(node.outputs) == 1:
        net.leave(node, source)
        return
    pairs = [_size(node, net, name, axis, place) for place, name in enumerate(node.outputs)]
    if is_open(whole):
        if len(set(pairs)) != 1 or any(pair[0] * len(pairs) != whole[0] for pair in pairs):
            raise Unsupported("it divides an axis of open size into unequal parts")
        parts = net.several("split", node.name, x=source, num_splits=len(pairs), axis=axis)
    else:
        parts = net.several("split", node.name, x=source, split_sizes=[pair[0] for pair in pairs], axis=axis)
    for place, _ in read:
        net.leave(node, parts[place], place)


def _size(node: Node, net: Network, name: str, axis: int, place: int) -> Pair:
    """Of an output; of one that nobody reads, what the node says."""
    if name:
        return net.pairs(name)[axis]
    given = node.integers("split")
    if given is None and node.given(1):
        given = [int(one) for one in net.constant(node.inputs[1], "sizes").reshape(-1)]
    if given is None:
        count, whole = len(node.outputs), net.pairs(node.inputs[0])[axis]
        part = -(-whole[0] // count), -(-whole[1] // count)
        last = whole[0] - part[0] * (count - 1), whole[1] - part[1] * (count - 1)
        return part if place < count - 1 else last
    return given[place], given[place]


@operator("Tile")
def tile(node: Node, net: Network) -> None:
    reps = [int(one) for one in net.constant(node.inputs[1], "repeats").reshape(-1)]
    source = net.variable(node.inputs[0])
    if all(one == 1 for one in reps):
        net.leave(node, source)
    else:
        net.put(node, "tile", x=source, reps=reps)


@operator("Expand")
def expand(node: Node, net: Network) -> None:
    source, after = net.variable(node.inputs[0]), net.pairs(node.outputs[0])
    before = net.pairs(node.inputs[0])
    aligned = ((1, 1),) * (len(after) - len(before)) + tuple(before)
    if len(after) > len(before):
        shape = target(net, node.inputs[0], source, aligned, f"{node.name}_aligned")
        source = net.reshaped(source, f"{node.name}_aligned", shape)
    reps = [wide if narrow == (1, 1) else (1, 1) for narrow, wide in zip(aligned, after, strict=True)]
    if all(one == (1, 1) for one in reps):
        net.leave(node, source)
        return
    net.put(node, "tile", x=source, reps=repeats(net, reps, node.name))
