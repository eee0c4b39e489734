"""Operators that take values by their places."""

from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.network import Network
from onnx_lathe.runtime.targets.coreml.operators.elementwise import operand
from onnx_lathe.runtime.targets.coreml.registry import operator


@operator("Gather")
def gather(node: Node, net: Network) -> None:
    table, index = node.inputs[:2]
    axis = node.integer("axis") % net.rank(table)
    source = operand(node, net, 0)
    places = net.values(index)
    if places is None:
        net.put(node, "gather", x=source, indices=_integers(node, net, index), axis=axis)
        return
    size = net.sizes(table)[axis]
    if places[0].shape == () and np.array_equal(*places):
        _single(node, net, source, axis, int(places[0]), size)
        return
    if size is None and (not np.array_equal(*places) or np.any(places[0] < 0)):
        raise Unsupported("its indices depend on the size of the input")
    values = net.constant(index, "index")
    net.put(
        node,
        "gather",
        x=source,
        indices=np.where(values < 0, values + (size or 0), values).astype(np.int32),
        axis=axis,
    )


def _single(node: Node, net: Network, source: Any, axis: int, place: int, size: int | None) -> None:
    """One place, whose axis goes."""
    place = place + size if place < 0 and size is not None else place
    rank = net.rank(node.inputs[0])
    here = [at == axis for at in range(rank)]
    net.put(
        node,
        "slice_by_index",
        x=source,
        begin=[place if own else 0 for own in here],
        end=[place + 1 if own else 0 for own in here],
        begin_mask=[not own for own in here],
        end_mask=[not own or place == -1 for own in here],
        squeeze_mask=here,
    )


def _integers(node: Node, net: Network, tensor: str) -> Any:
    return net.cast(net.variable(tensor), "int32", f"{node.name}_indices")


@operator("GatherElements")
def gather_elements(node: Node, net: Network) -> None:
    axis = node.integer("axis") % net.rank(node.inputs[0])
    indices = _integers(node, net, node.inputs[1])
    net.put(node, "gather_along_axis", x=net.variable(node.inputs[0]), indices=indices, axis=axis)


@operator("GatherND")
def gather_nd(node: Node, net: Network) -> None:
    if node.integer("batch_dims"):
        raise Unsupported("its batch_dims are not 0")
    indices = _integers(node, net, node.inputs[1])
    net.put(node, "gather_nd", x=net.variable(node.inputs[0]), indices=indices)


@operator("TopK")
def top_k(node: Node, net: Network) -> None:
    count = node.integer("k") if node.opset < 10 else int(net.constant(node.inputs[1], "k").reshape(-1)[0])
    axis = node.integer("axis", -1) % net.rank(node.inputs[0])
    ascending = not node.integer("largest", 1)
    node.integer("sorted", 1)
    results = net.several(
        "topk", node.name, x=net.variable(node.inputs[0]), k=count, axis=axis, ascending=ascending
    )
    for place, name in enumerate(node.outputs):
        if name:
            net.leave(node, results[place], place)


@operator("CumSum")
def cumsum(node: Node, net: Network) -> None:
    axis = int(net.constant(node.inputs[1], "axis").reshape(-1)[0]) % net.rank(node.inputs[0])
    exclusive, reverse = node.integer("exclusive") == 1, node.integer("reverse") == 1
    source = net.variable(node.inputs[0])
    net.put(node, "cumsum", x=source, axis=axis, exclusive=exclusive, reverse=reverse)
