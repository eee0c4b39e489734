"""Einsum of two operands, where it is a product of matrices.

    bhqd,bhkd->bhqk     batch b h, rows q, summed d, columns k

Each operand is permuted to [batch, rows, summed] or [batch, summed, columns], each group one dimension; and the
product is permuted to the order that is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.dialect import Stored
from onnx_lathe.runtime.targets.ncnn.expressions import ONE, Pair, pairs, product
from onnx_lathe.runtime.targets.ncnn.linear import Matrix, layer
from onnx_lathe.runtime.targets.ncnn.moving import held, leave, permuted, reshape
from onnx_lathe.runtime.targets.ncnn.network import MOST_DIMENSIONS, Loose, Network
from onnx_lathe.runtime.targets.ncnn.registry import operator


@dataclass(frozen=True)
class Terms:
    """Labels of the operands and of the result, without those of size 1."""

    operands: tuple[str, str]
    result: str
    sizes: dict[str, Pair]

    def group(self, *, first: bool, second: bool, kept: bool) -> str:
        """Labels that the operands, and the result, have or have not, in the order of the operand that has them."""
        order = self.operands[0] if first else self.operands[1]
        given = [(self.operands[0], first), (self.operands[1], second), (self.result, kept)]
        return "".join(label for label in order if all((label in term) == wanted for term, wanted in given))


@operator("Einsum")
def einsum(node: Node, net: Network) -> None:
    if len(node.inputs) != 2:
        raise Unsupported(f"it has {len(node.inputs)} operands; ncnn's products have two")
    terms = _terms(node, net)
    sources = list(node.inputs)
    if net.is_free(sources[0]):
        sources.reverse()
        terms = Terms((terms.operands[1], terms.operands[0]), terms.result, terms.sizes)
    batch = terms.group(first=True, second=True, kept=True)
    summed = terms.group(first=True, second=True, kept=False)
    rows = terms.group(first=True, second=False, kept=True)
    columns = terms.group(first=False, second=True, kept=True)
    if len(batch + summed + rows) != len(terms.operands[0]) or len(batch + summed + columns) != len(
        terms.operands[1]
    ):
        raise Unsupported("it sums one operand by itself")
    left = _operand(net, sources[0], terms, 0, (batch, rows, summed))
    if net.is_free(sources[1]) and not batch:
        values = _constant(net, sources[1], terms.operands[1], (columns, summed))
        kind, params, weights = layer(Matrix(Stored(values)), one_row=False)
        whole = net.inner(kind, f"{node.name}_product", [left], params, weights)
    else:
        right = _operand(net, sources[1], terms, 1, (batch, summed, columns))
        whole = net.inner("MatMul", f"{node.name}_product", [left, right])
    _leave(node, net, whole, terms, (batch, rows, columns))


def _terms(node: Node, net: Network) -> Terms:
    equation = "".join(node.text("equation", "").split())
    inputs, arrow, result = equation.partition("->")
    operands = inputs.split(",")
    if "." in equation or any(len(set(term)) != len(term) for term in (*operands, result)):
        raise Unsupported(f"its equation '{equation}' has dots, or a label twice in one operand")
    if not arrow:
        result = "".join(sorted(label for label in set(inputs) - {","} if inputs.count(label) == 1))
    sizes: dict[str, Pair] = {}
    for term, tensor in zip(operands, node.inputs, strict=True):
        for label, size in zip(term, pairs(net, tensor), strict=True):
            if sizes.setdefault(label, size) != size:
                raise Unsupported(f"its label {label} has two sizes")
    first, second, last = (
        "".join(label for label in term if sizes[label] != ONE) for term in (*operands, result)
    )
    return Terms((first, second), last, sizes)


def _operand(net: Network, tensor: str, terms: Terms, side: int, groups: Sequence[str]) -> str:
    """The blob of an operand with a dimension for each group; the first one, the batch, only if there is one."""
    groups = groups if groups[0] else groups[1:]
    labels = terms.operands[side]
    if net.is_free(tensor):
        return net.memory(f"{tensor}_operand", _constant(net, tensor, labels, groups))
    blob = _ordered(
        net, reshape(net, held(net, tensor), [terms.sizes[one] for one in labels], tensor), labels, groups
    )
    return reshape(net, blob, [product([terms.sizes[one] for one in group]) for group in groups], tensor).name


def _ordered(net: Network, blob: Loose, labels: str, groups: Sequence[str]) -> Loose:
    order = [labels.index(label) for group in groups for label in group]
    if order == sorted(order):
        return blob
    if len(order) > MOST_DIMENSIONS:
        raise Unsupported(f"it permutes {len(order)} dimensions; ncnn has {MOST_DIMENSIONS}")
    return permuted(net, blob, order, f"{blob.name}_turned")


def _constant(net: Network, tensor: str, labels: str, groups: Sequence[str]) -> np.ndarray:
    values = net.constant(tensor, "operand").astype(np.float32)
    values = values.reshape([size for size in values.shape if size != 1])
    turned = values.transpose([labels.index(label) for group in groups for label in group])
    ends = np.cumsum([len(group) for group in groups])
    sizes = [
        int(np.prod(turned.shape[end - len(group) : end])) for group, end in zip(groups, ends, strict=True)
    ]
    return np.ascontiguousarray(turned.reshape(sizes))


def _leave(node: Node, net: Network, blob: str, terms: Terms, groups: Sequence[str]) -> None:
    """The product, a dimension for each group, apart and in the order of the result."""
    labels = "".join(groups)
    merged = [product([terms.sizes[one] for one in group]) for group in (groups if groups[0] else groups[1:])]
    whole = Loose(blob, tuple(merged))
    if labels != terms.result:
        apart = reshape(net, whole, [terms.sizes[label] for label in labels], node.outputs[0])
        whole = _ordered(net, apart, labels, [terms.result])
    leave(node, net, whole)
