"""Which nodes provably return their first input unchanged, at inference, for every input."""

from collections.abc import Mapping

import numpy as np
import onnx

from onnx_lathe.passes.graph import Constant, Graph, Node
from onnx_lathe.passes.graph.shapes import TensorType

NEEDS_TYPES = frozenset({"Cast", "Reshape", "Flatten", "Transpose"})
"""Operators for which `is_noop` looks at tensor types."""


def is_noop(graph: Graph, node: Node, types: Mapping[str, TensorType]) -> bool:
    """Whether the node's first output equals its first input in value, shape and element type, and no other
    output is read.
    """
    check = _CHECKS.get(node.op)
    if (
        check is None
        or node.domain
        or not node.inputs
        or node.inputs[0].is_empty()
        or not node.outputs
        or node.outputs[0].is_empty()
    ):
        return False
    if any(extra.outputs or any(extra is output for output in graph.outputs) for extra in node.outputs[1:]):
        return False
    return check(graph, node, types)


def _identity(graph: Graph, node: Node, types: Mapping[str, TensorType]) -> bool:
    return True


def _only_operand(graph: Graph, node: Node, types: Mapping[str, TensorType]) -> bool:
    return len(node.inputs) == 1


def _dropout(graph: Graph, node: Node, types: Mapping[str, TensorType]) -> bool:
    if graph.opset < 7:
        return bool(node.attrs.get("is_test", 0))
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is None or training.is_empty():
        return True
    return isinstance(training, Constant) and not np.any(training.values)


def _transpose(graph: Graph, node: Node, types: Mapping[str, TensorType]) -> bool:
    order = node.attrs.get("perm")
    if order is None:
        shape = _shape(types, node)
        return shape is not None and len(shape) < 2
    return list(order) == sorted(order)


def _cast(graph: Graph, node: Node, types: Mapping[str, TensorType]) -> bool:
    source = types.get(node.inputs[0].name)
    wanted = node.attrs.get("to")
    if source is None or wanted is None:
        return False
    return source.element == (
        wanted if isinstance(wanted, int) else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(wanted))
    )


def _reshape(graph: Graph, node: Node, types: Mapping[str, TensorType]) -> bool:
    shape = _shape(types, node)
    if shape is None or len(node.inputs) < 2 or not isinstance(node.inputs[1], Constant):
        return False
    target = [int(dim) for dim in node.inputs[1].values.reshape(-1)]
    if len(target) != len(shape) or 0 in shape or node.attrs.get("allowzero", 0):
        return False
    # The one -1 that there may be is what is left over: that dimension itself, once all others are equal.
    return all(want in (-1, 0) or want == have for want, have in zip(target, shape, strict=True))


def _flatten(graph: Graph, node: Node, types: Mapping[str, TensorType]) -> bool:
    shape = _shape(types, node)
    return shape is not None and len(shape) == 2 and node.attrs.get("axis", 1) in (1, -1)


def _pad(graph: Graph, node: Node, types: Mapping[str, TensorType]) -> bool:
    pads = node.attrs.get("pads") if graph.opset < 11 else None
    if graph.opset >= 11 and len(node.inputs) > 1 and isinstance(node.inputs[1], Constant):
        pads = node.inputs[1].values
    return pads is not None and not np.any(pads)


def _shape(types: Mapping[str, TensorType], node: Node) -> tuple[int | str | None, ...] | None:
    known = types.get(node.inputs[0].name)
    return None if known is None else known.shape


_CHECKS = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Transpose": _transpose,
    "Cast": _cast,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Pad": _pad,
    "Concat": _only_operand,
    "Sum": _only_operand,
    "Max": _only_operand,
    "Min": _only_operand,
    "Mean": _only_operand,
}
