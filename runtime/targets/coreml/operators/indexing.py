"""Operators that take values by their places.

ONNX counts negative places from the end of an axis. From iOS 17 on MIL takes them for out of bounds, and says nothing.
Source: coremltools, mil/ops/defs/iOS17/scatter_gather.py.
"""

from collections.abc import Sequence
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
        net.put(node, "gather", x=source, indices=_counted(node, net, [axis]), axis=axis)
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


def _counted(node: Node, net: Network, axes: Sequence[int]) -> Any:
    """The second input, as places from 0 on: along the one axis, or along each of them in its last dimension."""
    tensor, label = node.inputs[1], f"{node.name}_places"
    places = net.cast(net.variable(tensor), "int32", f"{node.name}_indices")
    known, made = net.values(tensor), net.nodes.get(tensor)
    is_count = made is not None and made.op_type in ("ArgMax", "ArgMin", "TopK")
    if is_count or (known is not None and not any(np.any(one < 0) for one in known)):
        return places
    sizes = [net.sizes(node.inputs[0])[axis] for axis in axes]
    whole: Any = np.array([size or 0 for size in sizes], np.int32)
    if None in sizes:
        shape = net.op("shape", f"{label}_shape", x=net.variable(node.inputs[0]))
        whole = net.op("gather", f"{label}_sizes", x=shape, indices=np.array(axes, np.int32), axis=0)
    if not net.rank(tensor):
        whole = whole[0] if None not in sizes else net.op("squeeze", f"{label}_size", x=whole, axes=[0])
    moved = net.op("add", f"{label}_from_end", x=places, y=whole)
    is_place = net.op("greater_equal", f"{label}_from_start", x=places, y=np.int32(0))
    return net.op("select", label, cond=is_place, a=places, b=moved)


@operator("GatherElements")
def gather_elements(node: Node, net: Network) -> None:
    axis = node.integer("axis") % net.rank(node.inputs[0])
    indices = _counted(node, net, [axis])
    net.put(node, "gather_along_axis", x=net.variable(node.inputs[0]), indices=indices, axis=axis)


@operator("GatherND")
def gather_nd(node: Node, net: Network) -> None:
    if node.integer("batch_dims"):
        raise Unsupported("its batch_dims are not 0")
    indices = _counted(node, net, range(net.shape(node.inputs[1])[-1]))
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
