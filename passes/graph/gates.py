"""Piecewise linear gates: HardSigmoid, which exporters spell as additions and Clips, and HardSwish, which
is one times its input.

    y * Clip(x + c, 0, d) / d    becomes    y * HardSigmoid(x), alpha 1/d, beta c/d
    Clip(x + c, 0, d) / d        becomes    HardSigmoid(x)
    HardSwish(x)                 becomes    x * HardSigmoid(x)

Source: Howard et al., "Searching for MobileNetV3", ICCV 2019, section 5.2.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.model import free_name
from onnx_lathe.passes.graph.rewire import disconnect, is_output

LOWEST_OPSET = 7
"""Below, Add, Mul and Div broadcast by an attribute."""

SLOPE, OFFSET = 1 / 6, 0.5
"""Of the HardSigmoid in HardSwish."""


class _Step(NamedTuple):
    """A node of one activation and one constant number."""

    data: Tensor
    number: float
    rank: int
    """How many dimensions the constant has."""


def fuse_hard_sigmoid(
    graph: Graph, last: Node, captured: Collection[str], rank: Callable[[Tensor], int | None]
) -> Node | None:
    """Writes a gate as HardSigmoid if `last` is the division at its end, by a constant, or the
    multiplication. Returns the new HardSigmoid.

    Float32 gates whose steps nobody else reads; constants that do not change the shape. `rank` is that of a
    tensor, if it is known.
    """
    if graph.opset < LOWEST_OPSET:
        return None
    division = _constant_step(last, ("Div", "Mul"))
    if division is None or division.number <= 0:
        return None
    divisor = division.number if last.op == "Div" else 1 / division.number
    producer = _alone(graph, division.data, captured)
    if producer is None:
        return None
    product = producer if producer.op == "Mul" and not producer.domain else None
    operands = list(producer.inputs) if product is not None else [division.data]
    for tensor in operands:
        clip = _alone(graph, tensor, captured)
        if clip is None or not _clips(clip, divisor):
            continue
        addition = _alone(graph, clip.inputs[0], captured)
        shift = _constant_step(addition, ("Add",)) if addition is not None else None
        known = rank(shift.data) if shift is not None else None
        if addition is None or shift is None or max(shift.rank, division.rank) > (known or 0):
            continue
        clip.op, clip.attrs, clip.inputs = (
            "HardSigmoid",
            {"alpha": 1 / divisor, "beta": shift.number / divisor},
            [shift.data],
        )
        written = product if product is not None else clip
        outputs = list(last.outputs)
        disconnect(last)
        disconnect(addition)
        written.outputs = outputs
        return clip
    return None


def split_hard_swish(graph: Graph, node: Node) -> Node:
    """Writes a HardSwish as x * HardSigmoid(x), as its definition says. Returns the HardSigmoid."""
    source = node.inputs[0]
    gate = Variable(
        free_name(graph, f"{node.outputs[0].name}_gate"), source.dtype or np.float32, source.shape
    )
    sigmoid = Node("HardSigmoid", f"{node.name}_gate", {"alpha": SLOPE, "beta": OFFSET}, [source], [gate])
    graph.nodes.insert(next(index for index, other in enumerate(graph.nodes) if other is node), sigmoid)
    node.op, node.attrs, node.inputs = "Mul", {}, [source, gate]
    return sigmoid


def _constant_step(node: Node, operators: Collection[str]) -> _Step | None:
    if node.op not in operators or node.domain or len(node.inputs) != 2:
        return None
    for index in (1, 0) if node.op != "Div" else (1,):
        tensor, data = node.inputs[index], node.inputs[1 - index]
        if isinstance(tensor, Constant) and not isinstance(data, Constant) and tensor.dtype == np.float32:
            value = read(tensor)
            return (
                _Step(data, float(value.reshape(-1)[0]), value.ndim)
                if value.size == 1 and np.isfinite(value).all()
                else None
            )
    return None


def _alone(graph: Graph, tensor: Tensor, captured: Collection[str]) -> Node | None:
    """The node that computes the tensor, if the tensor has one reader and no other use."""
    seen = is_output(graph, tensor) or tensor.name in captured
    return tensor.inputs[0] if len(tensor.inputs) == 1 and len(tensor.outputs) == 1 and not seen else None


def _clips(node: Node, upper: float) -> bool:
    """Whether the node is a Clip from 0 to `upper`, to float32's precision."""
    if node.op != "Clip" or node.domain:
        return False
    ends = clip_range(node)
    return ends[0] == 0 and ends[1] is not None and bool(np.isclose(ends[1], upper, rtol=1e-6))


def clip_range(node: Node) -> tuple[float | None, float | None]:
    """Constant (minimum, maximum) of a Clip; None for an end that is computed at run time."""
    return _clip_end(node, 1, "min", -np.inf), _clip_end(node, 2, "max", np.inf)


def _clip_end(node: Node, index: int, attribute: str, default: float) -> float | None:
    if len(node.inputs) <= index or node.inputs[index].is_empty():
        return float(node.attrs.get(attribute, default))
    end = node.inputs[index]
    return float(read(end).item()) if isinstance(end, Constant) and read(end).size == 1 else None
