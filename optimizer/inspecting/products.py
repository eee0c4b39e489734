"""The matrix product that a layer is, the copies that im2col makes for it, and the multiplications of Winograd's
algorithm.

im2col (Chellapilla et al., "High performance convolutional neural networks for document processing", 2006): a
convolution is the product of d filters, each a row of k * k * c weights, and a matrix with a column of as many inputs
for each of n output positions. Overlapping kernels copy the same input into several columns.
"""

import math
from collections.abc import Mapping

import numpy as np
import onnx

from onnx_lathe.kernels import DIRECT, NAMES
from onnx_lathe.macs import FUSED, OpenShape
from onnx_lathe.optimizer.inspecting.rows import Gemm
from onnx_lathe.passes.graph import Node
from onnx_lathe.passes.numerics.winograd import tiled_products
from onnx_lathe.passes.winograd.layers import not_eligible
from onnx_lathe.tiles import TAPS

CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "DeformConv": 1}
"""Operator -> the input that is its weight."""
PRODUCTS = {"MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}


def gemm_of(node: onnx.NodeProto, shapes: Mapping[str, OpenShape]) -> tuple[Gemm | None, float | None]:
    """(the product, elements of im2col over those of the input); None where there is none, or a size is open."""
    op = FUSED.get(node.op_type, node.op_type)
    if op in CONVOLUTIONS:
        return _convolution(node, CONVOLUTIONS[op], shapes)
    if op == "ConvTranspose":
        return _transposed(node, shapes), None
    if op == "Gemm":
        return _gemm(node, shapes), 1.0
    if op in PRODUCTS:
        return _product(*(_known(node.input[place], shapes) for place in PRODUCTS[op])), 1.0
    return None, None


def winograd_of(
    node: Node, proto: onnx.NodeProto, shapes: Mapping[str, OpenShape], macs: int | None
) -> dict[str, int]:
    """Algorithm -> multiplications of all tiles, those at the border whole; none for a layer that cannot have it."""
    if proto.op_type != "Conv" or proto.domain not in ("", "ai.onnx") or not macs:
        return {}
    weight, output = _known(proto.input[1], shapes), _known(proto.output[0], shapes)
    if weight is None or output is None or len(output) != 4 or not_eligible(node, weight):
        return {}
    return {
        name: tiled_products(m, TAPS, weight[:2], output[0], output[2:])
        for m, name in NAMES.items()
        if m != DIRECT
    }


def _known(name: str, shapes: Mapping[str, OpenShape]) -> tuple[int, ...] | None:
    shape = shapes.get(name)
    if shape is None:
        return None
    sizes = tuple(size for size in shape if isinstance(size, int))
    return sizes if len(sizes) == len(shape) else None


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def _convolution(
    node: onnx.NodeProto, place: int, shapes: Mapping[str, OpenShape]
) -> tuple[Gemm | None, float | None]:
    weight, result = _known(node.input[place], shapes), _known(node.output[0], shapes)
    groups = _attribute(node, "group", 1)
    if weight is None or result is None or min(len(weight), len(result)) < 2 or groups < 1:
        return None, None  # sizes that the runtime will refuse, as below
    found = Gemm(groups, weight[0] // groups, math.prod(weight[1:]), result[0] * math.prod(result[2:]))
    read = _known(node.input[0], shapes)
    copies = None if not read else groups * found.k2c * found.n / max(1, math.prod(read))
    return found, copies


def _transposed(node: onnx.NodeProto, shapes: Mapping[str, OpenShape]) -> Gemm | None:
    """The product comes first, and its columns are summed into the result (col2im)."""
    weight, read = _known(node.input[1], shapes), _known(node.input[0], shapes)
    groups = _attribute(node, "group", 1)
    if weight is None or read is None or min(len(weight), len(read)) < 2 or groups < 1:
        return None
    return Gemm(groups, math.prod(weight[1:]), weight[0] // groups, read[0] * math.prod(read[2:]))


def _gemm(node: onnx.NodeProto, shapes: Mapping[str, OpenShape]) -> Gemm | None:
    weight, result = _known(node.input[1], shapes), _known(node.output[0], shapes)
    if weight is None or result is None or len(weight) != 2 or not result:
        return None
    d, inner = weight if _attribute(node, "transB", 0) else weight[::-1]
    return Gemm(1, d, inner, result[0])


def _product(left: tuple[int, ...] | None, right: tuple[int, ...] | None) -> Gemm | None:
    if not left or not right:
        return None
    rows = left[-2] if len(left) > 1 else 1
    columns = right[-1] if len(right) > 1 else 1
    if math.prod(right[:-2]) == 1:
        return Gemm(1, columns, left[-1], math.prod(left[:-2]) * rows)
    try:
        outer = np.broadcast_shapes(left[:-2], right[:-2])
    except ValueError:  # sizes that the runtime will refuse
        return None
    return Gemm(math.prod(outer), columns, left[-1], rows)
