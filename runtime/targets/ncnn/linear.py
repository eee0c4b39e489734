"""A matrix of constants times whatever rows a tensor has: what Gemm, MatMul and Einsum become.

    one row       InnerProduct    of a blob of one dimension
    INT8          InnerProduct    the only layer that takes a scale from the model for both operands
    more rows     Gemm            on x86 up to twice as fast as InnerProduct from two rows on

Both hold the weight as [outputs, inputs], as float32, float16 or a table.
Source: ncnn, src/layer/innerproduct.cpp and src/layer/gemm.cpp.
"""

from dataclasses import dataclass

import numpy as np

from onnx_lathe.runtime.targets.ncnn.dialect import Stored, Value, Weight
from onnx_lathe.runtime.targets.ncnn.network import Axes, Network
from onnx_lathe.runtime.targets.ncnn.node import Node
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
    target = node.outputs[0]
    if len(rows) > 1 and [net.sizes(target)[axis] for axis in net.usual(target)].count(None) > 1:
        _by_matmul(node, net, source, (*rows, last), matrix, shift)
        return
    if len(rows) > 1:
        bottom = net.reshaped(net.blob(source).name, source, [-1, matrix.inputs])
    else:
        bottom = net.form(source, (*rows, last)).name
    kind, params, weights = layer(matrix, one_row=not rows)
    if len(rows) > 1:
        whole = net.inner(kind, f"{target}_rows", [bottom], params, weights)
        _reshape_as(node, net, whole)
    elif vector:
        column = net.inner(kind, f"{target}_column", [bottom], params, weights)
        _reshape_as(node, net, column)
    else:
        axes = (*(axis + shift for axis in rows), last + shift)
        net.put(node, kind, [bottom], params, weights, axes)


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


def _reshape_as(node: Node, net: Network, blob: str) -> None:
    """Makes the blob, whose values lie in the right order, the node's result."""
    target = node.outputs[0]
    axes, sizes = net.usual(target), net.sizes(target)
    wanted = [-1 if sizes[axis] is None else sizes[axis] for axis in axes] or [1]
    net.name_output(node, net.reshaped(blob, target, [int(size or 0) for size in wanted]), axes)


def _by_matmul(node: Node, net: Network, source: str, axes: Axes, matrix: Matrix, shift: int) -> None:
    """Where several dimensions of rows are open, no Reshape brings them together and back: MatMul needs none."""
    values = matrix.weight.floats().astype(np.float32)
    if matrix.scales is not None:
        values = values * matrix.scales[:, None]
    weight = net.memory(f"{node.name}_weight", values.T.reshape(*[1] * (len(axes) - 2), *values.T.shape))
    bottoms = [net.form(source, axes).name, weight]
    net.put(node, "MatMul", bottoms, axes=tuple(axis + shift for axis in axes))
