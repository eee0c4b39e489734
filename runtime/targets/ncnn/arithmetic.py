"""ncnn's layers of arithmetic, for builders that need several of them in a row.

Two blobs must have the same number of dimensions here: ncnn guesses where dimensions of fewer belong. Those of
UnaryOp that ncnn only estimates (6 RSQRT), or that end before infinity (7 EXP, 8 LOG), have no name here: there are the layers Exp
and Log.
Source: ncnn, src/layer/binaryop.h, unaryop.h, reduction.h.
"""

import math
from collections.abc import Sequence

from onnx_lathe.runtime.targets.core.node import Unsupported
from onnx_lathe.runtime.targets.ncnn.dialect import Value
from onnx_lathe.runtime.targets.ncnn.network import Network

ADD, SUB, MUL, DIV, MAX, MIN, POW, RSUB, RDIV, RPOW = range(10)
ABS, NEG, FLOOR, CEIL, SQUARE, SQRT = range(6)
SIN, COS, TAN, ASIN, ACOS, ATAN, RECIPROCAL, ROUND = 9, 10, 11, 12, 13, 14, 15, 18
R_SUM, _, R_SUMSQ, R_MEAN, R_MAX, R_MIN, R_PROD, R_L1, R_L2, R_LOG_SUM = range(10)

SWAPPED = {SUB: RSUB, DIV: RDIV, POW: RPOW}
"""The operation with its operands the other way round; the others commute."""


def binary(net: Network, label: str, operation: int, first: str, second: str) -> str:
    """The blob of `first` operation `second`, two blobs with as many dimensions."""
    return net.inner("BinaryOp", label, [first, second], {0: operation})


def scalar(net: Network, label: str, operation: int, blob: str, value: float) -> str:
    """The blob of `blob` operation `value`."""
    return net.inner("BinaryOp", label, [blob], scalar_params(operation, value))


def scalar_params(operation: int, value: float) -> dict[int, Value]:
    if not math.isfinite(value):
        raise Unsupported(f"its constant operand is {value}, which ncnn's file cannot hold")
    return {0: operation, 1: 1, 2: float(value)}


def unary(net: Network, label: str, operation: int, blob: str) -> str:
    return net.inner("UnaryOp", label, [blob], {0: operation})


def reduction_params(operation: int, places: Sequence[int], keep: bool) -> dict[int, Value]:
    """`places`: which of the blob's dimensions go. 5=1 says that the batch is not counted among them."""
    return {0: operation, 1: 0, 3: list(places), 4: int(keep), 5: 1}


def reduced(net: Network, label: str, operation: int, blob: str, places: Sequence[int]) -> str:
    """The blob with dimensions of 1 at `places`."""
    return net.inner("Reduction", label, [blob], reduction_params(operation, places, keep=True))


def refuse_integers(net: Network, *tensors: str) -> None:
    for tensor in tensors:
        if net.is_integer(tensor):
            raise Unsupported("it computes with integers, and ncnn with float32")
