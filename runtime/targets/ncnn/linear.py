"""A matrix of constants times whatever rows a tensor has: what Gemm, MatMul and Einsum become.

    one row       InnerProduct    of a blob of one dimension
    INT8          InnerProduct    the only layer that takes a scale from the model for both operands
    more rows     Gemm            on x86 up to twice as fast as InnerProduct from two rows on

Both hold the weight as [outputs, inputs], as float32, float16 or a table.
Source: ncnn, src/layer/innerproduct.cpp and src/layer/gemm.cpp.
"""

from dataclasses import dataclass

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.dialect import Stored, Value, Weight
from onnx_lathe.runtime.targets.ncnn.expressions import ONE, pairs, product
from onnx_lathe.runtime.targets.ncnn.moving import held, leave, reshape
from onnx_lathe.runtime.targets.ncnn.network import MOST_DIMENSIONS, Axes, Loose, Network
from onnx_lathe.runtime.targets.ncnn.quantized import INT8_TERM, TERMS, inverse

NO_BIAS, BIAS_PER_COLUMN = -1, 4
"""Gemm's constant_broadcast_type_C."""


@dataclass(frozen=True)
class Matrix:
    """`weight`: [outputs, inputs]. `scales`: of each output, where the weight is INT8, and `input_scale` the one of
    what it is multiplied with.
    """

    weight: Stored
    bias: np.ndarray | None = None
    scales: np.ndarray | None = None
    input_scale: float = 1.0

    @property
    def outputs(self) -> int:
        return int(self.weight.values.shape[0])

    @property
    def inputs(self) -> int:
        return int(self.weight.values.shape[1])


def put_linear(
    node: Node, net: Network, source: str, matrix: Matrix, shift: int = 0, vector: bool = False
) -> None:
    """Writes source[..., inputs] times the matrix. The result has `shift` more dimensions in front than the source;
    for a `vector` its last one, of one value, is left out.
    """
    sizes = net.sizes(source)
    last = len(sizes) - 1
    rows = [axis for axis in range(last) if sizes[axis] != 1]
    if len(rows) > 1:
        _many_rows(node, net, source, (*rows, last), matrix, shift)
        return
    bottom = net.form(source, (*rows, last)).name
    kind, params, weights = layer(matrix, one_row=not rows)
    if vector:
        column = net.inner(kind, f"{node.outputs[0]}_column", [bottom], params, weights)
        leave(node, net, Loose(column, tuple(pairs(net, source)[axis] for axis in rows) + (ONE,)))
    else:
        axes = (*(axis + shift for axis in rows), last + shift)
        net.put(node, kind, [bottom], params, weights, axes)


def _many_rows(node: Node, net: Network, source: str, axes: Axes, matrix: Matrix, shift: int) -> None:
    """Rows along several dimensions become one for the layer, and come apart behind it."""
    sizes = pairs(net, source)
    rows = product(sizes[:-1])
    kind, params, weights = layer(matrix, one_row=False)
    try:
        flat = reshape(net, held(net, source), [rows, sizes[-1]], source)
        whole = net.inner(kind, f"{node.outputs[0]}_rows", [flat.name], params, weights)
        leave(node, net, Loose(whole, (rows, (matrix.outputs, matrix.outputs))))
    except Unsupported:  # no formula brings the rows apart again
        if len(axes) > MOST_DIMENSIONS:
            raise
        _by_matmul(node, net, source, axes, matrix, shift)


def layer(matrix: Matrix, one_row: bool) -> tuple[str, dict[int, Value], list[Weight]]:
    """(type, parameters, weights) of the layer that multiplies with a matrix."""
    weights = [Weight(matrix.weight.moved(lambda values: values.reshape(-1)), tagged=True)]
    if not one_row and matrix.scales is None:
        return "Gemm", *_gemm(matrix, weights)
    params: dict[int, Value] = {0: matrix.outputs, 1: int(matrix.bias is not None)}
    params[2] = matrix.outputs * matrix.inputs
    if matrix.bias is not None:
        weights.append(Weight(Stored(matrix.bias)))
    if matrix.scales is not None:
        params[INT8_TERM] = TERMS["InnerProduct"]
        weights.append(Weight(Stored(inverse(matrix.scales))))
        weights.append(Weight(Stored(inverse(np.array([matrix.input_scale])))))
    return "InnerProduct", params, weights


def _gemm(matrix: Matrix, weights: list[Weight]) -> tuple[dict[int, Value], list[Weight]]:
    params: dict[int, Value] = {2: 0, 3: 1, 4: 0, 5: 1, 6: 1, 7: 0, 8: matrix.outputs, 9: matrix.inputs}
    params[10] = NO_BIAS if matrix.bias is None else BIAS_PER_COLUMN
    if matrix.bias is not None:
        weights.append(Weight(Stored(matrix.bias), tagged=True))
    return params, weights


def _by_matmul(node: Node, net: Network, source: str, axes: Axes, matrix: Matrix, shift: int) -> None:
    """MatMul takes the rows as they are; it holds the weight in float32 alone."""
    values = matrix.weight.floats().astype(np.float32)
    if matrix.scales is not None:
        values = values * matrix.scales[:, None]
    weight = net.memory(f"{node.name}_weight", values.T.reshape(*[1] * (len(axes) - 2), *values.T.shape))
    bottoms = [net.form(source, axes).name, weight]
    net.put(node, "MatMul", bottoms, axes=tuple(axis + shift for axis in axes))
