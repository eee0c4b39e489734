"""How ncnn's blobs hold tensors that are no floats.

    bool                                    0 and 1 as float32
    integers that a node computes           float32: they are small, as those of ArgMax or of a cast are
    inputs that are cast or compared        float32, which the application hands over
    inputs that name rows of a table        integers of 32 bits, as Embed reads them

ncnn has no layer between the last and the others, so that an input is held in one way alone. Operators that
only move values hand either on.
"""

from collections.abc import Iterable, Mapping, Sequence

import onnx

from onnx_lathe.layout import LAYOUT
from onnx_lathe.runtime.targets.core.facts import SIZE_OPS

MOVING = (*LAYOUT, "Dropout", "Slice", "Split", "Concat", "Expand", "Tile", "Gather")
"""Of these, Concat moves all that it reads, the others the first."""
COMPARING = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
CASTS = ("Cast", "CastLike")
COUNTING = (*CASTS, "ArgMax", "ArgMin")
"""Operators that make integers of other values."""
FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.BFLOAT16,
)


def is_integer(element: int) -> bool:
    """Whether an ONNX type is one of integers; one that is not known is none."""
    return element not in (0, onnx.TensorProto.BOOL, *FLOATS)


def held_as_floats(graph: onnx.GraphProto, types: Mapping[str, int], free: Iterable[str]) -> set[str]:
    """The tensors of integers whose blobs hold float32."""
    known = set(free)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    found = {
        value.name
        for value in graph.input
        if is_integer(value.type.tensor_type.elem_type) and _is_counted(value.name, readers, outputs, types)
    }
    for node in graph.node:
        counted = node.op_type in COUNTING and not _hands_on(node, types, found | known)
        moved = any(name in found for name in _moved(node))
        if not node.domain and (counted or moved):
            found.update(name for name in node.output if is_integer(types.get(name, 0)))
    return found


def _moved(node: onnx.NodeProto) -> Sequence[str]:
    """What a node only moves."""
    if node.domain or node.op_type not in (*MOVING, *CASTS):
        return ()
    return node.input if node.op_type == "Concat" else node.input[:1]


def _hands_on(node: onnx.NodeProto, types: Mapping[str, int], floats: set[str]) -> bool:
    """Whether it is a cast between integers that are none but an input's own."""
    return node.op_type in CASTS and is_integer(types.get(node.input[0], 0)) and node.input[0] not in floats


def _is_counted(
    tensor: str,
    readers: Mapping[str, list[onnx.NodeProto]],
    outputs: set[str],
    types: Mapping[str, int],
) -> bool:
    """Whether all that comes of an input of integers is cast to floats or compared."""
    nodes = readers.get(tensor, [])
    if tensor in outputs or not nodes:
        return False
    for node in nodes:
        if node.domain:
            return False
        casts = node.op_type in CASTS and not is_integer(types.get(node.output[0], 0))
        if casts or node.op_type in (*COMPARING, *SIZE_OPS):
            continue
        moved = tensor in _moved(node)
        if not moved or not all(_is_counted(name, readers, outputs, types) for name in node.output):
            return False
    return True
