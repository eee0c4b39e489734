"""Reductions over axes, Softmax, and places of the largest values."""

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.dimensions import target
from onnx_lathe.runtime.targets.coreml.network import Network
from onnx_lathe.runtime.targets.coreml.registry import operator

REDUCTIONS = {
    "ReduceMean": "reduce_mean",
    "ReduceSum": "reduce_sum",
    "ReduceMax": "reduce_max",
    "ReduceMin": "reduce_min",
    "ReduceProd": "reduce_prod",
    "ReduceL1": "reduce_l1_norm",
    "ReduceL2": "reduce_l2_norm",
    "ReduceLogSum": "reduce_log_sum",
    "ReduceLogSumExp": "reduce_log_sum_exp",
    "ReduceSumSquare": "reduce_sum_square",
}
OF_ONE = {"ReduceSumSquare": "square", "ReduceLogSum": "log", "ReduceL1": "abs", "ReduceL2": "abs"}
"""What is left where no axis goes (noop_with_empty_axes); of the others, nothing."""


@operator(*REDUCTIONS)
def reduce(node: Node, net: Network) -> None:
    source, axes = net.variable(node.inputs[0]), _axes(node, net)
    if axes:
        keep = node.integer("keepdims", 1) == 1
        net.put(node, REDUCTIONS[node.op], x=source, axes=axes, keep_dims=keep)
    elif node.op in OF_ONE:
        node.integer("keepdims", 1)
        net.put(node, OF_ONE[node.op], x=source)
    else:
        node.integer("keepdims", 1)
        net.leave(node, source)


def _axes(node: Node, net: Network) -> list[int]:
    """An attribute, or since opset 13 (ReduceSum) and 18 an input; all if none are given."""
    rank = net.rank(node.inputs[0])
    if node.given(1):
        axes = [int(axis) for axis in net.constant(node.inputs[1], "axes").reshape(-1)]
    else:
        axes = node.integers("axes") or []
    nothing = node.integer("noop_with_empty_axes")
    if not axes and not nothing:
        axes = list(range(rank))
    return sorted(axis % rank for axis in axes) if rank else []


@operator("Softmax", "LogSoftmax")
def softmax(node: Node, net: Network) -> None:
    """Along one axis; up to opset 12 along all axes from one on, as if they were one."""
    tensor, name = node.inputs[0], node.name
    source, rank = net.variable(tensor), net.rank(tensor)
    axis = node.integer("axis", -1 if node.opset >= 13 else 1) % max(rank, 1)
    pairs = net.pairs(tensor)
    together = [at for at in range(axis, rank) if pairs[at] != (1, 1)] if node.opset < 13 else [axis]
    flat = len(together) > 1
    if flat:
        whole = tuple(int(np.prod([pair[end] for pair in pairs[axis:]])) for end in (0, 1))
        rows = [*pairs[:axis], (whole[0], whole[1])]
        source = net.reshaped(source, f"{name}_flat", target(net, tensor, source, rows, name))
    axis = together[0] if together and not flat else axis
    if node.op == "Softmax":
        result = net.op("softmax", f"{name}_along", x=source, axis=axis)
    else:
        largest = net.op("reduce_max", f"{name}_max", x=source, axes=[axis], keep_dims=True)
        below = net.op("sub", f"{name}_below", x=source, y=largest)
        total = net.op("reduce_log_sum_exp", f"{name}_sum", x=below, axes=[axis], keep_dims=True)
        result = net.op("sub", f"{name}_along", x=below, y=total)
    if flat:
        shape = target(net, tensor, net.variable(tensor), pairs, f"{name}_back")
        result = net.reshaped(result, f"{name}_back", shape)
    net.leave(node, result)


@operator("ArgMax", "ArgMin")
def arg_max(node: Node, net: Network) -> None:
    if node.integer("select_last_index"):
        raise Unsupported("of equal values it takes the last")
    kind = "reduce_argmax" if node.op == "ArgMax" else "reduce_argmin"
    axis, keep = node.integer("axis"), node.integer("keepdims", 1) == 1
    net.put(node, kind, x=net.variable(node.inputs[0]), axis=axis, keep_dims=keep)
