"""Gemm and MatMul."""

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.dialect import Stored, Value, Weight
from onnx_lathe.runtime.targets.ncnn.linear import Matrix, put_linear
from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.quantized import int8_scales
from onnx_lathe.runtime.targets.ncnn.registry import operator
from onnx_lathe.runtime.targets.ncnn.weights import quantized_input

ROWS, COLUMNS = (0, 1)


@operator("Gemm")
def gemm(node: Node, net: Network) -> None:
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    added = node.inputs[2] if node.given(2) and beta != 0.0 else None
    if alpha == 0.0:
        raise Unsupported("its alpha is 0, so that it multiplies nothing")
    if node.integer("transA") or net.value(node.inputs[1]) is None or not _is_per_column(net, added):
        _any_gemm(node, net, alpha, beta, added)
        return
    source, matrix = _matrix(net, node, 0 if node.integer("transB") else 1)
    bias = None
    if added is not None:
        values = net.constant(added, "third operand").astype(np.float32) * np.float32(beta)
        bias = np.broadcast_to(values.reshape(-1), (matrix.outputs,)).copy()
    put_linear(node, net, source, _times(matrix, alpha, bias))


def _is_per_column(net: Network, added: str | None) -> bool:
    """Whether what is added is constant, and the same for each row."""
    values = None if added is None else net.value(added)
    return added is None or (values is not None and (values.ndim < 2 or values.shape[0] == 1))


def _matrix(net: Network, node: Node, outputs_axis: int) -> tuple[str, Matrix]:
    """(what is multiplied, the matrix) of a constant weight whose dimensions beside the last two are 1."""

    def turned(values: np.ndarray) -> np.ndarray:
        matrix = values.reshape(values.shape[-2:])
        return matrix if outputs_axis == 0 else matrix.T

    source, weight = node.inputs[:2]
    quantized = quantized_input(net, source)
    codes = int8_scales(net, weight, outputs_axis)
    if quantized is None or codes is None:
        return source, Matrix(net.weight(weight).moved(turned))
    tensor, scale = quantized
    return tensor, Matrix(Stored(codes[0]).moved(turned), None, codes[1], scale)


def _times(matrix: Matrix, alpha: float, bias: np.ndarray | None) -> Matrix:
    """alpha times the matrix, and a bias."""
    factor, stored = np.float32(alpha), matrix.weight
    if matrix.scales is not None:
        if alpha < 0:
            return Matrix(Stored(-stored.values), bias, matrix.scales * -factor, matrix.input_scale)
        return Matrix(stored, bias, matrix.scales * factor, matrix.input_scale)
    if stored.table is not None:
        return Matrix(Stored(stored.values, stored.table * factor), bias)
    return Matrix(stored if alpha == 1.0 else Stored(stored.values * factor), bias)


def _any_gemm(node: Node, net: Network, alpha: float, beta: float, added: str | None) -> None:
    """ncnn's Gemm computes alpha * (A B + beta C), ONNX's alpha * A B + beta * C. C has two dimensions always: one of
    one dimension ncnn takes for a column, if there are as many rows as columns.
    """
    first, second = node.inputs[:2]
    params: dict[int, Value] = {0: alpha, 1: beta / alpha, 2: node.integer("transA"), 3: 1, 6: 0}
    bottoms, weights = [net.form(first, (ROWS, COLUMNS)).name], list[Weight]()
    if net.value(second) is not None:
        stored = net.weight(second)
        stored = stored if node.integer("transB") else stored.moved(np.transpose)
        params |= {5: 1, 8: stored.values.shape[0], 9: stored.values.shape[1]}
        weights = [Weight(stored.moved(lambda values: values.reshape(-1)), tagged=True)]
    else:
        params[3] = node.integer("transB")
        bottoms.append(net.form(second, (ROWS, COLUMNS)).name)
    if added is None:
        params |= {6: 1, 10: -1}
    else:
        rank = net.rank(added)
        bottoms.append(net.form(added, (rank - 2, rank - 1)).name)
    net.put(node, "Gemm", bottoms, params, weights, (ROWS, COLUMNS))


@operator("MatMul")
def matmul(node: Node, net: Network) -> None:
    first, second = node.inputs
    shape = net.shape(second)
    if net.value(second) is None or net.is_free(first) or any(size != 1 for size in shape[:-2]):
        put_product(node, net)
        return
    ranks = net.rank(first), net.rank(node.outputs[0])
    if len(shape) == 1:
        stored = net.weight(second).moved(lambda values: values.reshape(1, -1))
        put_linear(node, net, first, Matrix(stored), vector=True)
    else:
        source, matrix = _matrix(net, node, len(shape) - 1)
        put_linear(node, net, source, matrix, shift=ranks[1] - ranks[0])


def put_product(node: Node, net: Network) -> None:
    """Writes a product of two tensors, neither of which need be constant. A vector counts as a row on the left, as a
    column on the right, and what it lacks is missing in the result.
    """
    ranks = [net.rank(tensor) for tensor in node.inputs]
    rank = max(*ranks, 2)
    batch = [place for place in range(rank - 2) if _size(node, net, place, rank) != 1]
    if len(batch) > 2:
        raise Unsupported("it multiplies batches of more than two dimensions")
    kept = [*batch, rank - 2, rank - 1]
    bottoms = [
        net.form(tensor, tuple(_axis(place, ranks[side], rank, side) for place in kept)).name
        for side, tensor in enumerate(node.inputs)
    ]
    gone = [len(batch) + side for side in (0, 1) if ranks[side] == 1]
    target = node.outputs[0]
    if not gone:
        net.put(node, "MatMul", bottoms, axes=tuple(kept))
        return
    whole = net.inner("MatMul", f"{target}_whole", bottoms)
    if len(gone) == len(kept):
        net.name_output(node, net.reshaped(whole, target, [1]), ())
    else:
        net.name_output(
            node, net.inner("Squeeze", f"{target}_vector", [whole], {3: gone}), (*batch, rank - 2)
        )


def _axis(place: int, own: int, rank: int, side: int) -> int:
    """From a dimension of the product to the axis of an operand that has `own`; one that it lacks is below 0."""
    if own == 1 and side == 1:
        return 0 if place == rank - 2 else -1 - place
    return place - (rank - own)


def _size(node: Node, net: Network, place: int, rank: int) -> int | None:
    """Of a dimension of the batch: the size that is not 1, if there is one."""
    sizes = [net.sizes(tensor) for tensor in node.inputs]
    places = [place - (rank - len(found)) for found in sizes]
    found = {one[at] for one, at in zip(sizes, places, strict=True) if at >= 0} - {1}
    return found.pop() if found else 1
