"""Tensors that have no value below 0, as the operators say that write them."""

from collections.abc import Callable, Iterable

import numpy as np
import onnx

from onnx_lathe.layout import LAYOUT
from onnx_lathe.runtime.targets.ncnn.network import Network

FARTHEST = 8
"""How many nodes are looked at, one behind the other."""
POSITIVE = ("Exp", "Sigmoid", "Softmax", "Softplus")
NEVER_NEGATIVE = (
    *POSITIVE,
    "Abs",
    "HardSigmoid",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceSumSquare",
    "Relu",
    "Sqrt",
)
OF_ONE = (
    *LAYOUT,
    "AveragePool",
    "Ceil",
    "Dropout",
    "Expand",
    "Floor",
    "Gather",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "MaxPool",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Reciprocal",
    "Round",
    "Slice",
    "Split",
    "Tile",
)
"""Operators whose results are never negative if their first input is not."""
OF_ALL = ("Add", "Concat", "Div", "Mean", "Min", "Mul", "Sum")


def never_negative(net: Network, tensor: str, left: int = FARTHEST) -> bool:
    """Whether a constant has no negative value, or the tensor's nodes make none."""
    known = net.value(tensor)
    if known is not None:
        return bool((known >= 0).all())
    made = net.nodes.get(tensor)
    if made is None or made.domain or not left:
        return False
    return _writes_none(net, made, lambda names: [never_negative(net, name, left - 1) for name in names])


def above_0(net: Network, tensor: str, left: int = FARTHEST) -> bool:
    """Whether a constant has no value of 0 or below, or the tensor's nodes make none."""
    known, made = net.value(tensor), net.nodes.get(tensor)
    if known is not None:
        return bool((known > 0).all())
    if made is None or made.domain or not left or not made.input:
        return False
    op = made.op_type
    judged = (above_0(net, name, left - 1) for name in made.input)
    if op == "Clip":
        return _least(net, made) > 0 or next(judged)
    if op in ("Max", "Add", "Sum"):
        rest = op == "Max" or all(never_negative(net, name, left - 1) for name in made.input)
        return rest and any(judged)
    if op in ("Sqrt", "Abs", "Relu") or (op in OF_ONE and op not in ("Floor", "Round", "Reciprocal")):
        return next(judged)
    return op in ("Mul", "Div", "Concat", "Min", "Mean") and all(judged)


def is_positive(net: Network, tensor: str) -> bool:
    """Whether the tensor's node writes 0 only where float32 has nothing smaller."""
    made = net.nodes.get(tensor)
    return made is not None and not made.domain and made.op_type in POSITIVE


def _writes_none(net: Network, made: onnx.NodeProto, judge: Callable[[Iterable[str]], list[bool]]) -> bool:
    inputs, op = list(made.input), made.op_type
    if op in NEVER_NEGATIVE or (op == "Mul" and inputs[0] == inputs[1]):
        return True
    if op == "Clip":
        return _least(net, made) >= 0 or all(judge(inputs[:1]))
    if op == "Pow":
        exponent = net.value(inputs[1])
        even = exponent is not None and not np.any(exponent % 2)
        return even or all(judge(inputs[:1]))
    if op == "Max":
        return any(judge(inputs))
    return all(judge(inputs[:1] if op in OF_ONE else inputs)) if op in (*OF_ONE, *OF_ALL) else False


def _least(net: Network, made: onnx.NodeProto) -> float:
    """What a Clip lets through: an attribute up to opset 10, an input since."""
    if len(made.input) > 1 and made.input[1]:
        low = net.value(made.input[1])
        return -np.inf if low is None else float(low.min())
    return next((item.f for item in made.attribute if item.name == "min"), -np.inf)
