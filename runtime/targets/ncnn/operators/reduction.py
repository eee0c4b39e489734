"""Reductions along axes, global pooling, and softmax."""

from collections.abc import Mapping, Sequence

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn import arithmetic as math_layers
from onnx_lathe.runtime.targets.ncnn.arithmetic import binary, reduced, reduction_params, refuse_integers
from onnx_lathe.runtime.targets.ncnn.dialect import Value
from onnx_lathe.runtime.targets.ncnn.network import MOST_DIMENSIONS, Axes, Blob, Network
from onnx_lathe.runtime.targets.ncnn.registry import operator

OPERATIONS = {
    "ReduceSum": math_layers.R_SUM,
    "ReduceSumSquare": math_layers.R_SUMSQ,
    "ReduceMean": math_layers.R_MEAN,
    "ReduceMax": math_layers.R_MAX,
    "ReduceMin": math_layers.R_MIN,
    "ReduceProd": math_layers.R_PROD,
    "ReduceL1": math_layers.R_L1,
    "ReduceL2": math_layers.R_L2,
    "ReduceLogSum": math_layers.R_SUM,
}
OF_ONE: dict[str, tuple[str, dict[int, Value]]] = {
    "ReduceSumSquare": ("UnaryOp", {0: math_layers.SQUARE}),
    "ReduceL1": ("UnaryOp", {0: math_layers.ABS}),
    "ReduceL2": ("UnaryOp", {0: math_layers.ABS}),
    "ReduceLogSum": ("Log", {}),
}
"""What is left of a reduction along axes of one value; of the others, nothing."""
NOTHING_GOES = {op: OF_ONE[op] for op in ("ReduceSumSquare", "ReduceLogSum")}
"""What ONNX Runtime computes value by value where no axes are given; the other operators hand on what they read."""
MAX_POOLING, MEAN_POOLING = 0, 1
MOST_COUNTED = 2048
"""Float16 holds all whole numbers up to this one."""


@operator(*OPERATIONS, "ReduceLogSumExp")
def reduce(node: Node, net: Network) -> None:
    refuse_integers(net, node.inputs[0], node.outputs[0])
    source = net.blob(node.inputs[0])
    rank, gone = net.rank(node.inputs[0]), _reduced_axes(node, net)
    places = [place for place, axis in enumerate(source.axes) if axis in gone]
    if not gone:  # noop_with_empty_axes
        _write_each(node, net, source.name, source.axes, NOTHING_GOES)
        return
    left = tuple(axis for axis in source.axes if axis not in gone)
    keep = node.integer("keepdims", 1) == 1
    if keep:
        axes = source.axes
    else:
        kept = [axis for axis in range(rank) if axis not in gone]
        axes = tuple(kept.index(axis) for axis in left)
    if not places:
        _write_each(node, net, source.name, axes, OF_ONE)
    elif node.op == "ReduceLogSumExp":
        _log_sum_exp(node, net, source, places, keep, axes)
    elif node.op == "ReduceLogSum":
        total = net.inner("Reduction", f"{node.name}_sum", [source.name], _params(node, places, keep))
        net.put(node, "Log", [total], axes=axes)
    elif node.op in ("ReduceMean", "ReduceMax") and _is_plane(source, places) and keep:
        _global_pooling(node, net, source, MEAN_POOLING if node.op == "ReduceMean" else MAX_POOLING)
    else:
        net.put(node, "Reduction", [source.name], _params(node, places, keep), axes=axes)


def _write_each(
    node: Node, net: Network, blob: str, axes: Axes, layers: Mapping[str, tuple[str, dict[int, Value]]]
) -> None:
    """What is left of the operator for each value alone."""
    if node.op in layers:
        kind, params = layers[node.op]
        net.put(node, kind, [blob], params, axes=axes)
    else:
        net.name_output(node, blob, axes)


def _params(node: Node, places: Sequence[int], keep: bool) -> dict[int, Value]:
    return reduction_params(OPERATIONS[node.op], places, keep)


def _reduced_axes(node: Node, net: Network) -> set[int]:
    """An attribute, or since opset 13 (ReduceSum) and 18 an input; all if none are given."""
    rank = net.rank(node.inputs[0])
    if node.given(1):
        axes = [int(axis) for axis in net.constant(node.inputs[1], "axes").reshape(-1)]
    else:
        axes = node.integers("axes") or []
    nothing = node.integer("noop_with_empty_axes")
    if not axes and not nothing:
        axes = list(range(rank))
    return {axis % rank for axis in axes} if rank else set()


def _is_plane(source: Blob, places: Sequence[int]) -> bool:
    """Whether height and width of a blob of channels, height and width go."""
    return len(source.axes) == 3 and list(places) == [1, 2]


def _global_pooling(node: Node, net: Network, source: Blob, kind: int) -> None:
    """Pooling with global_pooling=4: it gives a vector, and has fast code where Reduction has none."""
    net.put(node, "Pooling", [source.name], {0: kind, 4: 1}, axes=source.axes[:1])


def _log_sum_exp(
    node: Node, net: Network, source: Blob, places: Sequence[int], keep: bool, axes: Axes
) -> None:
    """max + log(sum(exp(x - max))): ncnn's own LogSumExp has no room for the exponential of a large value."""
    name = node.name
    largest = reduced(net, f"{name}_max", math_layers.R_MAX, source.name, places)
    below = binary(net, f"{name}_below", math_layers.SUB, source.name, largest)
    total = reduced(net, f"{name}_sum", math_layers.R_SUM, net.inner("Exp", f"{name}_exp", [below]), places)
    whole = binary(net, f"{name}_whole", math_layers.ADD, net.inner("Log", f"{name}_log", [total]), largest)
    if keep:
        net.name_output(node, whole, axes)
    elif axes:
        net.put(node, "Squeeze", [whole], {3: list(places)}, axes=axes)
    else:
        net.name_output(node, net.reshaped(whole, name, [1]), axes)


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(node: Node, net: Network) -> None:
    refuse_integers(net, node.inputs[0])
    rank, mean = net.rank(node.inputs[0]), node.op == "GlobalAveragePool"
    axes = tuple(range(1, rank))
    if rank > MOST_DIMENSIONS + 1 or rank < 3:
        raise Unsupported(f"its input has {rank} dimensions; ncnn pools over 1, 2 or 3")
    source = Blob(net.form(node.inputs[0], axes).name, axes)
    if rank == 4:
        _global_pooling(node, net, source, MEAN_POOLING if mean else MAX_POOLING)
    else:
        operation = math_layers.R_MEAN if mean else math_layers.R_MAX
        params = reduction_params(operation, range(1, rank - 1), keep=True)
        net.put(node, "Reduction", [source.name], params, axes=axes)


@operator("Softmax", "LogSoftmax")
def softmax(node: Node, net: Network) -> None:
    """Along one axis; up to opset 12 along all axes from one on, as if they were one."""
    refuse_integers(net, node.inputs[0])
    tensor = node.inputs[0]
    rank = net.rank(tensor)
    axis = node.integer("axis", -1 if node.opset >= 13 else 1) % max(rank, 1)
    sizes = net.sizes(tensor)
    together = [at for at in range(axis, rank) if sizes[at] != 1] if node.opset < 13 else [axis]
    if len(together) > 1:
        _flat_softmax(node, net, axis)
        return
    source = net.blob(tensor)
    if together and together[0] in source.axes:
        result = _along(node, net, source.name, source.axes.index(together[0]))
    else:
        result = _of_one(node, net, source.name)
    net.name_output(node, result, source.axes)


def _of_one(node: Node, net: Network, blob: str) -> str:
    """Along an axis of one value the softmax is 1, and its logarithm 0."""
    zeros = math_layers.scalar(net, f"{node.name}_zeros", math_layers.MUL, blob, 0.0)
    if node.op == "LogSoftmax":
        return zeros
    return math_layers.scalar(net, node.name, math_layers.ADD, zeros, 1.0)


def _flat_softmax(node: Node, net: Network, axis: int) -> None:
    """[sizes before the axis, all from it on], softmax along the second, and back."""
    tensor = node.inputs[0]
    source, sizes = net.blob(tensor), net.sizes(tensor)
    before = [sizes[at] for at in source.axes if at < axis]
    after = [sizes[at] for at in source.axes if at >= axis]
    flat = [_product(part) for part in (before, after) if part]
    if flat.count(None) > 1 or sizes.count(None) > 1:
        raise Unsupported("two or more sizes that it puts together depend on the size of the input")
    rows = net.reshaped(source.name, node.name, [-1 if size is None else size for size in flat])
    result = _along(node, net, rows, len(flat) - 1)
    back = [-1 if sizes[at] is None else sizes[at] for at in source.axes]
    net.name_output(
        node, net.reshaped(result, f"{node.name}_back", [int(size or 0) for size in back]), source.axes
    )


def _product(sizes: Sequence[int | None]) -> int | None:
    result = 1
    for size in sizes:
        if size is None:
            return None
        result *= size
    return result


def _along(node: Node, net: Network, blob: str, place: int) -> str:
    """The blob of the softmax, or of its logarithm: x - max - log(sum(exp(x - max))), which stays finite."""
    name = node.name
    if node.op == "Softmax":
        return net.inner("Softmax", name, [blob], {0: place, 1: 1})
    largest = reduced(net, f"{name}_max", math_layers.R_MAX, blob, [place])
    below = binary(net, f"{name}_below", math_layers.SUB, blob, largest)
    total = reduced(net, f"{name}_sum", math_layers.R_SUM, net.inner("Exp", f"{name}_exp", [below]), [place])
    return binary(net, name, math_layers.SUB, below, net.inner("Log", f"{name}_log", [total]))


@operator("ArgMax", "ArgMin")
def arg_max(node: Node, net: Network) -> None:
    """The place of the largest value, the first of several: count - max((x == max x) * (count - place)). ncnn's own
    ArgMax looks at all values at once.
    """
    tensor, name = node.inputs[0], node.name
    refuse_integers(net, tensor)
    axis = node.integer("axis") % net.rank(tensor)
    if node.integer("select_last_index"):
        raise Unsupported("of equal values it takes the last")
    count = net.sizes(tensor)[axis]
    if count is None:
        raise Unsupported(f"how many values lie along axis {axis} depends on the size of the input")
    if count > MOST_COUNTED:
        raise Unsupported(
            f"it looks at {count} values; phones count in float16, which is exact up to {MOST_COUNTED}"
        )
    axes = tuple(sorted({*net.blob(tensor).axes, axis}))
    source = net.form(tensor, axes if len(axes) <= MOST_DIMENSIONS else net.usual(tensor))
    if axis not in source.axes:
        raise Unsupported(f"it looks along axis {axis}, which ncnn's blob has no dimension for")
    place = source.axes.index(axis)
    values = (
        source.name
        if node.op == "ArgMax"
        else math_layers.unary(net, f"{name}_neg", math_layers.NEG, source.name)
    )
    largest = reduced(net, f"{name}_max", math_layers.R_MAX, values, [place])
    below = net.inner(
        "Threshold", f"{name}_below", [binary(net, f"{name}_gap", math_layers.SUB, largest, values)]
    )
    found = math_layers.scalar(net, f"{name}_found", math_layers.RSUB, below, 1.0)
    lengths = np.arange(count, 0, -1, dtype=np.float32)
    left = net.memory(
        f"{name}_left", lengths.reshape([count if at == place else 1 for at in range(len(source.axes))])
    )
    product = binary(net, f"{name}_first", math_layers.MUL, found, left)
    farthest = reduced(net, f"{name}_farthest", math_layers.R_MAX, product, [place])
    result = math_layers.scalar(net, name, math_layers.RSUB, farthest, float(count))
    if node.integer("keepdims", 1):
        net.name_output(node, result, source.axes)
        return
    kept = tuple(at - (at > axis) for at in source.axes if at != axis)
    if kept:
        net.put(node, "Squeeze", [result], {3: [place]}, axes=kept)
    else:
        net.name_output(node, result, ())
