"""Values that may be no numbers (0 / 0, the logarithm of -1), looked for upwards from where they matter.

What sums values is not looked behind: one that is no number would be in every result of ONNX Runtime, too.
"""

from collections.abc import Sequence

import numpy as np
import onnx

from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.signs import above_0, never_negative

SUMMING = (
    "ArgMax",
    "ArgMin",
    "Attention",
    "AveragePool",
    "Conv",
    "ConvTranspose",
    "CumSum",
    "Einsum",
    "GRU",
    "Gemm",
    "GridSample",
    "GroupNormalization",
    "InstanceNormalization",
    "LRN",
    "LSTM",
    "LayerNormalization",
    "LogSoftmax",
    "LpNormalization",
    "MatMul",
    "RMSNormalization",
    "RNN",
    "Resize",
    "Softmax",
    "Upsample",
)
CHOOSING = ("Where", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor")
"""Operators that write numbers, whatever they read; a choice has been looked at itself."""
MIXING = ("Mul", "Sub", "Div", "Sin", "Cos", "Tan")
"""Operators that may make no number of what is infinite."""


def unsure(net: Network, tensors: Sequence[str]) -> str | None:
    """An operator that may write what is no number, and that such a value comes from to one of these tensors."""
    left, seen = [(tensor, False) for tensor in tensors], set()
    while left:
        tensor, mixed = left.pop()
        made = net.nodes.get(tensor)
        if made is None or made.domain or net.is_free(tensor) or (tensor, mixed) in seen:
            continue
        seen.add((tensor, mixed))
        if made.op_type.startswith(("Reduce", "Global")) or made.op_type in (*SUMMING, *CHOOSING):
            continue
        if _may_fail(net, made) or (mixed and _may_overflow(net, made)):
            return made.op_type
        varied = [name for name in made.input if name and not net.is_free(name)]
        mixing = made.op_type in MIXING and (len(varied) > 1 or len(made.input) == 1)
        left += [(name, mixed or mixing) for name in varied]
    return None


def _may_fail(net: Network, made: onnx.NodeProto) -> bool:
    op, inputs = made.op_type, made.input
    if op in ("Acos", "Asin"):
        return True
    if op in ("Log", "Reciprocal"):
        return not above_0(net, inputs[0])
    if op == "Sqrt":
        return not never_negative(net, inputs[0])
    if op == "Div":
        divisor = net.value(inputs[1])
        return not (np.all(divisor != 0) if divisor is not None else above_0(net, inputs[1]))
    return op == "Pow" and not _is_sure_power(net, made)


def _is_sure_power(net: Network, made: onnx.NodeProto) -> bool:
    base, exponent = made.input[0], net.value(made.input[1])
    if exponent is None:
        return above_0(net, base)
    if np.any(exponent < 0):
        return above_0(net, base)
    return bool(np.all(exponent == np.round(exponent))) or never_negative(net, base)


def _may_overflow(net: Network, made: onnx.NodeProto) -> bool:
    """Of exp(-|x|) and its like, no: their operand is never positive."""
    before = net.nodes.get(made.input[0]) if made.input else None
    if made.op_type != "Exp":
        return False
    return before is None or before.op_type != "Neg" or not never_negative(net, before.input[0])
