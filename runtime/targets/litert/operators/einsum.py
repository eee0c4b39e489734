"""Einsum: of two operands where it is a product of matrices, of one where it sums and permutes.

    bhqd,bhkd->bhqk     batch b h, rows q, columns k, summed d

Each operand is permuted to [batch, rows, summed] or [batch, summed, columns], each group one dimension; and the product is
permuted to the order that is asked for. Labels of one operand alone that are not asked for are summed beforehand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_lathe.runtime.targets.litert.dimensions import ONE, Dim, product
from onnx_lathe.runtime.targets.litert.emitter import FLOAT, Emitter
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator

DOTS = "..."
SPARE = "ABCDEFGH"
"""Labels for the dimensions that dots stand for."""


@dataclass
class Operand:
    """A tensor with a label for each dimension."""

    place: int
    labels: str


@operator("Einsum")
def einsum(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    operands, result = _parse(emit)
    if not 1 <= len(operands) <= 2:
        raise Unsupported(
            f"it has {len(operands)} operands; Lathe writes products of two: split it into several"
        )
    sizes: dict[str, Dim] = {}
    for one in operands:
        for label, dim in zip(one.labels, emit.dims(one.place), strict=True):
            if sizes.get(label, ONE) == ONE:
                sizes[label] = dim
    for place, one in enumerate(operands):
        others = {label for other in operands if other is not one for label in other.labels}
        operands[place] = _summed(emit, one, {*result, *others})
    found = operands[0] if len(operands) == 1 else _multiplied(emit, operands[0], operands[1], result, sizes)
    emit.leave(emit.transpose(found.place, [found.labels.index(label) for label in result]))


def _parse(emit: Emitter) -> tuple[list[Operand], str]:
    node = emit.node
    equation = "".join(node.text("equation", "").split())
    inputs, arrow, result = equation.partition("->")
    terms = inputs.split(",")
    places = [emit.computed(position, {FLOAT}) for position in range(len(node.inputs))]
    most = 0
    for number, (term, place) in enumerate(zip(terms, places, strict=True)):
        spare = emit.rank(place) - len(term.replace(DOTS, ""))
        most = max(most, spare if DOTS in term else 0)
        terms[number] = term.replace(DOTS, SPARE[len(SPARE) - spare :] if spare else "")
    dots = SPARE[len(SPARE) - most :] if most else ""
    if not arrow:
        labels = "".join(terms)
        result = dots + "".join(sorted(one for one in {*labels} - {*dots} if labels.count(one) == 1))
    result = result.replace(DOTS, dots)
    if any(len(set(term)) != len(term) for term in (*terms, result)):
        raise Unsupported(
            f"its equation '{equation}' has a label twice in one operand: take the diagonal before it"
        )
    return [Operand(place, term) for place, term in zip(places, terms, strict=True)], result


def _summed(emit: Emitter, one: Operand, wanted: set[str]) -> Operand:
    gone = [axis for axis, label in enumerate(one.labels) if label not in wanted]
    kept = "".join(label for label in one.labels if label in wanted)
    return Operand(emit.reduce("SUM", one.place, gone, keep=False), kept)


def _multiplied(emit: Emitter, left: Operand, right: Operand, result: str, sizes: dict[str, Dim]) -> Operand:
    """The product, its labels in the order batch, rows, columns."""
    shared = [label for label in left.labels if label in right.labels]
    if any(_size(emit, left, label) != _size(emit, right, label) for label in shared):
        return _elementwise(emit, left, right, result)
    batch = "".join(label for label in shared if label in result)
    summed = "".join(label for label in shared if label not in result)
    rows = "".join(label for label in left.labels if label not in right.labels)
    columns = "".join(label for label in right.labels if label not in left.labels)
    first = _grouped(emit, left, (batch, rows, summed), sizes)
    second = _grouped(emit, right, (batch, columns, summed), sizes)
    whole = emit.matmul(first, second, turned=True)
    labels = batch + rows + columns
    return Operand(emit.reshape(whole, [sizes[label] for label in labels]), labels)


def _size(emit: Emitter, one: Operand, label: str) -> Dim:
    return emit.dims(one.place)[one.labels.index(label)]


def _elementwise(emit: Emitter, left: Operand, right: Operand, result: str) -> Operand:
    """Of operands of which one has a size of 1 where the other has more: multiplied with broadcasting, and summed."""
    labels = "".join(dict.fromkeys(left.labels + right.labels))
    spread = []
    for one in (left, right):
        order = [one.labels.index(label) for label in labels if label in one.labels]
        place = emit.transpose(one.place, order)
        for axis, label in enumerate(labels):
            if label not in one.labels:
                place = emit.expand_dims(place, axis)
        spread.append(place)
    return _summed(emit, Operand(emit.mul(*spread), labels), {*result})


def _grouped(emit: Emitter, one: Operand, groups: Sequence[str], sizes: dict[str, Dim]) -> int:
    """Three dimensions: one for each group."""
    turned = emit.transpose(one.place, [one.labels.index(label) for group in groups for label in group])
    return emit.reshape(turned, [product([sizes[label] for label in group]) for group in groups])
