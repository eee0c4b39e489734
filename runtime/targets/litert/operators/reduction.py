"""Reductions along axes."""

from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node
from onnx_lathe.runtime.targets.litert.registry import operator


@operator("ReduceMean", integers=("INT8", "INT16"), data=(0,))
def reduce_mean(node: Node, net: Network) -> None:
    rank = net.rank(node.inputs[0])
    axes = (
        [int(axis) % rank for axis in net.constant(node.inputs[1], "axes")]
        if node.given(1)
        else node.integers("axes")
    )
    if axes is None:
        axes = list(range(rank)) if not node.integer("noop_with_empty_axes") else []
    if not axes:
        net.name_output(node, net.read(node.inputs[0]))
        return
    places = [net.operand(node, 0), net.ints(sorted(axis % rank for axis in axes), "axes")]
    net.put(node, "MEAN", places, "ReducerOptions", keepDims=bool(node.integer("keepdims", 1)))
